#include "text.h"

#include <deque>

namespace lr {

size_t incomplete_tail(const std::string & text) {
    const size_t n = text.size();
    for (size_t back = 1; back <= 3 && back <= n; ++back) {
        const auto lead = static_cast<uint8_t>(text[n - back]);
        if (lead >= 0x80 && lead < 0xC0) {
            continue;  // in the middle of a character
        }
        const size_t length = lead >= 0xF0 && lead < 0xF5 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC2 ? 2 : 1;
        if (lead >= 0xF5 || length <= back) {
            return 0;
        }
        if (back >= 2) {
            // the second byte tells whether this can become a character at all
            const auto second = static_cast<uint8_t>(text[n - back + 1]);
            const bool possible = lead == 0xE0 ? second >= 0xA0 : lead == 0xED ? second < 0xA0 :
                                  lead == 0xF0 ? second >= 0x90 : lead == 0xF4 ? second < 0x90 : true;
            if (!possible) {
                return 0;
            }
        }
        return back;
    }
    return 0;
}

stop_matcher::stop_matcher(const std::vector<std::string> & stops) : nodes_(1), stops_(stops) {
    for (size_t s = 0; s < stops_.size(); ++s) {
        int at = 0;
        for (char c : stops_[s]) {
            const auto byte = static_cast<uint8_t>(c);
            int next = child(at, byte);
            if (next < 0) {
                next = static_cast<int>(nodes_.size());
                nodes_[at].next.emplace_back(byte, next);
                nodes_.emplace_back();
            }
            at = next;
        }
        nodes_[at].match = static_cast<int>(s);
    }
    link();
}

int stop_matcher::child(int at, uint8_t byte) const {
    for (const auto & edge : nodes_[at].next) {
        if (edge.first == byte) {
            return edge.second;
        }
    }
    return -1;
}

int stop_matcher::step(int at, uint8_t byte) const {
    for (;;) {
        const int next = child(at, byte);
        if (next >= 0) {
            return next;
        }
        if (at == 0) {
            return 0;
        }
        at = nodes_[at].fail;
    }
}

// Breadth first, so that a node's shorter suffixes are finished before it is.
void stop_matcher::link() {
    std::deque<std::pair<int, size_t>> queue;  // node, length of its text
    for (const auto & edge : nodes_[0].next) {
        queue.emplace_back(edge.second, 1);
    }
    while (!queue.empty()) {
        const auto [at, depth] = queue.front();
        queue.pop_front();
        auto & here = nodes_[at];
        const auto & suffix = nodes_[here.fail];
        if (here.match < 0) {
            here.match = suffix.match;
        }
        here.held = here.next.empty() ? suffix.held : depth;
        for (const auto & edge : here.next) {
            nodes_[edge.second].fail = at == 0 ? 0 : step(nodes_[at].fail, edge.first);
            queue.emplace_back(edge.second, depth + 1);
        }
    }
}

void stop_matcher::push(const char * piece, size_t size, std::string & out) {
    if (stopped_ >= 0) {
        return;
    }
    if (stops_.empty()) {
        out.append(piece, size);
        return;
    }
    for (size_t i = 0; i < size; ++i) {
        pending_.push_back(piece[i]);
        at_ = step(at_, static_cast<uint8_t>(piece[i]));
        const auto & here = nodes_[at_];
        if (here.match >= 0) {
            const size_t start = pending_.size() - stops_[here.match].size();
            if (best_ < 0 || start <= best_start_) {
                best_       = here.match;
                best_start_ = start;
            }
        }
        // nothing that starts at the match or before it is open any more: it cannot be outdone
        if (best_ >= 0 && pending_.size() - here.held > best_start_) {
            decide(out);
            return;
        }
        if (here.held == 0) {
            out += pending_;
            pending_.clear();
        }
    }
    if (best_ < 0) {
        const size_t certain = pending_.size() - nodes_[at_].held;
        out.append(pending_, 0, certain);
        pending_.erase(0, certain);
    }
}

void stop_matcher::decide(std::string & out) {
    out.append(pending_, 0, best_start_);
    pending_.clear();
    stopped_ = best_;
}

void stop_matcher::flush(std::string & out) {
    if (stopped_ >= 0) {
        return;
    }
    if (best_ >= 0) {
        decide(out);
        return;
    }
    out += pending_;
    pending_.clear();
    at_ = 0;
}

}  // namespace lr
