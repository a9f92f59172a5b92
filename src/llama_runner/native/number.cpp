#include "number.h"

#include <charconv>
#include <cmath>
#include <cstdlib>

namespace {

std::string shortest(double number, std::chars_format format) {
    char       text[400];  // the smallest number has some 330 digits after its point
    const auto end = std::to_chars(text, text + sizeof(text), number, format).ptr;
    return std::string(text, end);
}

std::string fixed(double number) {
    auto text = shortest(number, std::chars_format::fixed);
    return text.find('.') == std::string::npos ? text + ".0" : text;
}

}  // namespace

std::string lr_print_float(double number) {
    return std::isfinite(number) ? fixed(number) : std::to_string(number);
}

std::string lr_json_float(double number) {
    if (!std::isfinite(number)) {
        return std::isnan(number) ? "NaN" : number > 0 ? "Infinity" : "-Infinity";
    }
    const auto text     = shortest(number, std::chars_format::scientific);
    const int  exponent = std::atoi(text.c_str() + text.find('e') + 1);
    return exponent >= -4 && exponent < 16 ? fixed(number) : text;
}
