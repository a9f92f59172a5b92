// From pieces of bytes to text that can be shown: whole characters only, and never part of a stop string.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace lr {

// How many bytes at the end of `text` are the beginning of a character that could still be completed (0 to 3).
size_t incomplete_tail(const std::string & text);

// Aho-Corasick over byte strings. The stop string that starts earliest ends the text; of those that start there the
// longest: which one it is can take a byte more than the string itself. Same result however the bytes are cut.
class stop_matcher {
public:
    stop_matcher() = default;
    explicit stop_matcher(const std::vector<std::string> & stops);

    // Feeds `piece`, appends to `out` what is certain to precede every stop string that is still possible.
    void push(const char * piece, size_t size, std::string & out);
    // The text is at its end: appends what was held back; a stop string that only the end made certain counts.
    void flush(std::string & out);

    int stopped() const { return stopped_; }  // index of the stop string, -1 for none

private:
    struct node {
        std::vector<std::pair<uint8_t, int>> next;
        int    fail    = 0;
        int    match   = -1;  // the longest stop string that is a suffix of the node's text
        size_t held    = 0;   // longest suffix of the node's text that a stop string can still grow from
    };
    int  child(int at, uint8_t byte) const;
    int  step(int at, uint8_t byte) const;
    void link();
    void decide(std::string & out);

    std::vector<node>        nodes_;
    std::vector<std::string> stops_;
    std::string pending_;         // bytes not let out yet
    int         at_         = 0;
    int         best_       = -1; // a stop string that is complete but could still be outdone
    size_t      best_start_ = 0;  // where it starts in pending_
    int         stopped_    = -1;
};

}  // namespace lr
