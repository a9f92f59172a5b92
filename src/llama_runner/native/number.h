// How the template interpreter of llama.cpp's common writes numbers, by way of steps.h.
#pragma once

#include <ostream>
#include <string>
#include <type_traits>

// All digits of it, never with an exponent, and with a fraction: upstream cuts zeros off the end.
std::string lr_print_float(double number);

template <typename T> std::string lr_print(T number) {
    if constexpr (std::is_floating_point_v<T>) {
        return lr_print_float(number);
    } else {
        return std::to_string(number);
    }
}

// As Python's json module writes it: the fewest digits that are read as the same number.
std::string lr_json_float(double number);

// A number that is written as JSON when it goes into a stream, and a double everywhere else.
struct lr_json_number {
    double number;

    operator double() const { return number; }
};

inline std::ostream & operator<<(std::ostream & out, const lr_json_number & number) {
    return out << lr_json_float(number.number);
}

struct lr_as_json {};

inline lr_json_number operator*(double number, lr_as_json) {
    return {number};
}
