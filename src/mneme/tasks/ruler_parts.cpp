#include "mneme/tasks/ruler_parts.h"

#include "mneme/tasks/haystack.h"
#include "mneme/tasks/word_list.h"

#include <algorithm>
#include <fmt/format.h>

namespace mneme::tasks {

std::string listed(std::span<const std::string> items) {
  std::string out;
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out += i + 1 == items.size() ? ", and " : ", ";
    out += items[i];
  }
  return out;
}

std::vector<std::string> new_items(std::size_t count, const std::vector<std::string>& taken,
                                   const std::function<std::string()>& make) {
  std::vector<std::string> out;
  const auto has = [](const auto& list, const std::string& item) {
    return std::find(list.begin(), list.end(), item) != list.end();
  };
  while (out.size() < count) {
    auto item = make();
    if (!has(taken, item) && !has(out, item)) out.push_back(std::move(item));
  }
  return out;
}

std::string random_word(Generator& generator) {
  const auto adjective = pick(adjectives(), generator);
  return fmt::format("{}-{}", adjective, pick(nouns(), generator));
}

std::string random_number(Generator& generator, std::size_t digits) {
  std::string out(1, static_cast<char>('1' + below(generator, 9)));
  while (out.size() < digits) out += static_cast<char>('0' + below(generator, 10));
  return out;
}

std::string random_uuid(Generator& generator) {
  const auto a = generator.next(), b = generator.next(), c = generator.next(), d = generator.next();
  return fmt::format("{:08x}-{:04x}-4{:03x}-{:04x}-{:04x}{:08x}", a, b >> 16, b & 0xFFF,
                     0x8000 | (c >> 16 & 0x3FFF), c & 0xFFFF, d);
}

}  // namespace mneme::tasks
