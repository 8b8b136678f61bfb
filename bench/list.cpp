#include "bench/list.h"

#include "mneme/core/error.h"
#include "mneme/text/white_space.h"

#include <algorithm>
#include <charconv>
#include <fmt/format.h>

namespace mneme::bench {

std::vector<std::string> listed(std::string_view text, char separator) {
  std::vector<std::string> out;
  for (std::size_t begin = 0; begin <= text.size();) {
    const auto end = std::min(text.find(separator, begin), text.size());
    const auto part = text::trimmed(text.substr(begin, end - begin));
    if (!part.empty()) out.emplace_back(part);
    begin = end + 1;
  }
  return out;
}

std::vector<std::int64_t> listed_numbers(std::string_view option, std::string_view text,
                                         std::int64_t least) {
  std::vector<std::int64_t> out;
  for (const auto& part : listed(text)) {
    std::int64_t number = 0;
    const auto* end = part.data() + part.size();
    const auto [stopped, error] = std::from_chars(part.data(), end, number);
    constexpr std::int64_t kMost = 1'000'000'000;  // sums of two of them are numbers too
    if (error != std::errc{} || stopped != end || number < least || number > kMost) {
      throw Error(Errc::usage, fmt::format("--{}: '{}' is not a whole number of at least {} and at "
                                           "most {}",
                                           option, part, least, kMost));
    }
    out.push_back(number);
  }
  if (out.empty())
    throw Error(Errc::usage,
                fmt::format("--{}: give one number or several, as in 128,512", option));
  return out;
}

}  // namespace mneme::bench
