#include "mneme/text/span.h"

#include "mneme/core/error.h"
#include "mneme/text/sentence.h"
#include "mneme/text/white_space.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <fmt/format.h>
#include <limits>
#include <utility>

namespace mneme {
namespace text {
namespace {

constexpr std::int64_t kLongLine = 160;  // characters; hard-wrapped text has shorter lines
constexpr std::size_t kMaxHeadingBytes = 300;
constexpr std::int64_t kMaxTitleChars =
    80;  // of a line that is taken for a heading without any mark
constexpr int kMaxTitleWords = 12;
constexpr std::size_t kMaxFenceRun = 32;
constexpr std::size_t kChunkBytes = 64;  // what a sentence that is too long is counted by

enum class BlockKind { heading, paragraph, fence, code };

struct Block {
  std::size_t begin = 0, end = 0;
  BlockKind kind = BlockKind::paragraph;
  int level = 0;  // of a heading
};

struct Line {
  std::size_t begin = 0, end = 0,
              next = 0;  // [begin, end) without the line end and the white space before it
  [[nodiscard]] std::string_view in(std::string_view text) const {
    return text.substr(begin, end - begin);
  }
  [[nodiscard]] bool blank() const { return begin == end; }
};

// The line that begins at `at`; white space at its end is left out, so that a blank line is empty.
Line line_at(std::string_view text, std::size_t at) {
  const auto feed = text.find('\n', at);
  Line line{at, feed == std::string_view::npos ? text.size() : feed, 0};
  line.next = feed == std::string_view::npos ? text.size() : feed + 1;
  while (line.end > line.begin) {
    const auto n =
        space_before(text.substr(line.begin, line.end - line.begin), line.end - line.begin);
    if (n == 0) break;
    line.end -= n;
  }
  return line;
}

std::int64_t characters(std::string_view s) {
  return std::count_if(s.begin(), s.end(), begins_character);
}

std::size_t indentation(std::string_view s) {
  return std::min(s.find_first_not_of(" \t"), s.size());
}

void trim(std::string_view text, std::size_t& begin, std::size_t& end) {
  while (begin < end) {
    const auto n = space_at(text.substr(0, end), begin);
    if (n == 0) break;
    begin += n;
  }
  while (end > begin) {
    const auto n = space_before(text.substr(begin, end - begin), end - begin);
    if (n == 0) break;
    end -= n;
  }
}

// Level 1 to 6 of "# heading", or 0.
int hash_heading(std::string_view line) {
  const auto indent = indentation(line);
  if (indent > 3 || line.size() > kMaxHeadingBytes) return 0;
  line.remove_prefix(indent);
  const auto hashes = std::min(line.find_first_not_of('#'), line.size());
  if (hashes < 1 || hashes > 6 || hashes == line.size()) return 0;
  return line[hashes] == ' ' || line[hashes] == '\t' ? static_cast<int>(hashes) : 0;
}

// The character of a line that is nothing but one punctuation mark, three times or more; 0 if it is
// not one.
char rule_of(std::string_view line) {
  line.remove_prefix(std::min<std::size_t>(indentation(line), 3));
  if (line.size() < 3 || std::string_view("=-~^*\"+#").find(line[0]) == std::string_view::npos)
    return 0;
  return line.find_first_not_of(line[0]) == std::string_view::npos ? line[0] : '\0';
}

// Whether `rule` underlines `title`: Markdown allows any length of = and -, the other marks must be
// as long as the title.
bool underlines(std::string_view rule, std::string_view title) {
  const char mark = rule_of(rule);
  if (mark == 0 || title.size() > kMaxHeadingBytes || rule_of(title) != 0) return false;
  return mark == '=' || mark == '-' || static_cast<std::int64_t>(rule.size()) >= characters(title);
}

struct FenceMark {
  char mark = 0;
  std::size_t run = 0;
};

// ``` or ~~~ at the beginning of a line; a closing one has nothing behind it.
FenceMark fence_of(std::string_view line, bool closing) {
  const auto indent = indentation(line);
  if (indent > 3) return {};
  line.remove_prefix(indent);
  if (line.empty() || (line[0] != '`' && line[0] != '~')) return {};
  const auto run = std::min(line.find_first_not_of(line[0]), line.size());
  if (run < 3 || (closing && run < line.size())) return {};
  if (!closing && line[0] == '`' && line.find('`', run) != std::string_view::npos) return {};
  return {line[0], std::min(run, kMaxFenceRun)};
}

// Text -> headings, paragraphs and fences in order.
class BlockReader {
 public:
  explicit BlockReader(std::string_view text) : text_(text) {}

  std::vector<Block> read(std::size_t at) {
    while (at < text_.size()) {
      const Line line = line_at(text_, at);
      at = line.next;
      const auto s = line.in(text_);
      if (line.blank()) {
        close();
      } else if (const auto fence = fence_of(s, false); fence.mark != 0 && find_close(fence, at)) {
        close();
        add({line.begin, close_.end, BlockKind::fence, 0});
        at = close_.next;
      } else if (const int level = hash_heading(s); level > 0) {
        close();
        hashes_ = true;
        add({line.begin, line.end, BlockKind::heading, level});
      } else if (lines_ == 1 && underlines(s, first_.in(text_))) {
        heading(line.end, rule_of(s), false);
      } else if (lines_ == 2 && rule_of(s) != 0 && rule_of(first_.in(text_)) == rule_of(s) &&
                 underlines(s, last_.in(text_))) {
        heading(line.end, rule_of(s), true);
      } else {
        append(line);
      }
    }
    close();
    for (const auto& [block, style] : underlined_) blocks_[block].level = level_of(style);
    return std::move(blocks_);
  }

 private:
  using Style = std::pair<char, bool>;  // the mark, and whether it stands above the title too

  void add(Block block) { blocks_.push_back(block); }

  void append(const Line& line) {
    if (lines_ == 0) first_ = line;
    if (last_long_) {
      ++breaks_;
      if (ends_sentence(last_.in(text_))) ++ends_;
    }
    last_ = line;
    ++lines_;
    const auto n = characters(line.in(text_));
    chars_ += n;
    last_long_ = n > kLongLine;
    if (last_long_) long_chars_ += n;
  }

  void forget_lines() {
    lines_ = chars_ = long_chars_ = breaks_ = ends_ = 0;
    last_long_ = false;
  }

  void heading(std::size_t end, char mark, bool above) {
    underlined_.emplace_back(blocks_.size(), Style{mark, above});
    add({first_.begin, end, BlockKind::heading, 0});
    forget_lines();
  }

  void close() {
    if (lines_ == 0) return;
    // Long lines are paragraphs, unless they break off inside a sentence.
    if (breaks_ > 0 && 2 * long_chars_ >= chars_ && 2 * ends_ >= breaks_) {
      for (std::size_t at = first_.begin; at < last_.end;) {
        const Line line = line_at(text_, at);
        add({line.begin, line.end, BlockKind::paragraph, 0});
        at = line.next;
      }
    } else {
      add({first_.begin, last_.end, BlockKind::paragraph, 0});
    }
    forget_lines();
  }

  // Looks for the line that closes a fence. A search that failed is remembered for all runs as long
  // or longer, so that many fences left open cost at most kMaxFenceRun passes.
  bool find_close(FenceMark open, std::size_t at) {
    auto& hopeless = hopeless_[open.mark == '`' ? 0 : 1];
    if (open.run >= hopeless) return false;
    while (at < text_.size()) {
      close_ = line_at(text_, at);
      const auto fence = fence_of(close_.in(text_), true);
      if (fence.mark == open.mark && fence.run >= open.run) return true;
      at = close_.next;
    }
    hopeless = open.run;
    return false;
  }

  // In Markdown = is level 1 and - level 2; elsewhere the styles rank in the order in which they
  // appear.
  int level_of(Style style) {
    if (hashes_ && !style.second && (style.first == '=' || style.first == '-'))
      return style.first == '=' ? 1 : 2;
    const auto found = std::find(styles_.begin(), styles_.end(), style);
    if (found != styles_.end()) return static_cast<int>(found - styles_.begin()) + 1;
    styles_.push_back(style);
    return static_cast<int>(styles_.size());
  }

  std::string_view text_;
  std::vector<Block> blocks_;
  Line first_, last_, close_;
  std::int64_t lines_ = 0, chars_ = 0, long_chars_ = 0;  // of the paragraph that is being read
  std::int64_t breaks_ = 0,
               ends_ = 0;  // line ends behind long lines, and those that end a sentence
  bool last_long_ = false;
  std::array<std::size_t, 2> hopeless_{kMaxFenceRun + 1, kMaxFenceRun + 1};
  std::vector<std::pair<std::size_t, Style>> underlined_;
  std::vector<Style> styles_;
  bool hashes_ = false;
};

// Code -> the pieces between blank lines.
std::vector<Block> code_blocks(std::string_view text, std::size_t at) {
  std::vector<Block> blocks;
  bool open = false;
  while (at < text.size()) {
    const Line line = line_at(text, at);
    at = line.next;
    if (line.blank()) {
      open = false;
    } else if (open) {
      blocks.back().end = line.end;
    } else {
      blocks.push_back({line.begin, line.end, BlockKind::code, 0});
      open = true;
    }
  }
  return blocks;
}

// What passages are put together from.
struct Unit {
  std::size_t begin = 0, end = 0;
  std::int64_t tokens = 1;
  double start_cost = 0;  // of beginning a passage here
  bool lead = false;      // belongs to what follows
  int heading = -1;       // which heading of its group this is
};

// The cheapest cut of `n` things of which a run costs cost(first, last, tokens), +infinity if it
// may not be and no longer run with the same end may be either. The first index of each run.
template <class Tokens, class Cost>
std::vector<std::size_t> cheapest_cut(std::size_t n, const Tokens& tokens, const Cost& cost) {
  std::vector<double> best(n + 1, std::numeric_limits<double>::infinity());
  std::vector<std::size_t> from(n + 1, 0);
  best[0] = 0;
  for (std::size_t last = 0; last < n; ++last) {
    std::int64_t sum = 0;
    for (std::size_t first = last + 1; first-- > 0;) {
      sum += tokens(first);
      const double c = cost(first, last, sum);
      if (c == std::numeric_limits<double>::infinity()) break;
      if (best[first] + c < best[last + 1]) {
        best[last + 1] = best[first] + c;
        from[last + 1] = first;
      }
    }
  }
  std::vector<std::size_t> starts;
  for (std::size_t at = n; at > 0; at = from[at]) starts.push_back(from[at]);
  std::reverse(starts.begin(), starts.end());
  return starts;
}

double squared(double x) { return x * x; }

class SpanCutter {
 public:
  SpanCutter(std::string_view text, Media media, const CountTokens& count,
             const SpanOptions& options)
      : text_(text), code_(media == Media::code), count_(count), o_(options) {}

  std::vector<Span> cut() {
    const std::size_t start = text_.starts_with("\xEF\xBB\xBF") ? 3 : 0;
    const auto blocks = code_ ? code_blocks(text_, start) : BlockReader(text_).read(start);
    // The units of every group are made first: how they are joined depends on the whole text.
    std::vector<Group> groups;
    for (const auto& block : blocks) {
      if (block.kind == BlockKind::heading) {
        const bool goes_on =
            !groups.empty() && !groups.back().body && groups.back().levels.back() < block.level;
        if (!goes_on) groups.emplace_back();
        auto& group = groups.back();
        const auto first = group.units.size();
        group.units.push_back(unit_of(block));
        if (group.units.back().tokens > o_.max_tokens) {
          group.units.pop_back();
          split({block.begin, block.end, BlockKind::paragraph, 0}, 0, group.units);
        }
        for (auto i = first; i < group.units.size(); ++i) group.units[i].lead = true;
        group.units[first].heading = static_cast<int>(group.levels.size());
        group.levels.push_back(block.level);
      } else {
        if (groups.empty()) groups.emplace_back();
        groups.back().body = true;
        add_units(block, groups.back().units);
      }
    }
    std::int64_t all = 0, normal = 0;
    for (const auto& group : groups) {
      for (const auto& unit : group.units) {
        if (unit.heading >= 0) continue;
        all += unit.tokens;
        if (unit.tokens >= o_.min_tokens) normal += unit.tokens;
      }
    }
    fragmented_ = code_ || 2 * normal < all;
    for (const auto& group : groups) emit(group);
    close_sections(0);
    return std::move(spans_);
  }

 private:
  // A run of blocks that passages may be joined from: the headings it begins with and the text up
  // to the next heading.
  struct Group {
    std::vector<Unit> units;
    std::vector<int> levels;
    bool body = false;
  };

  [[nodiscard]] std::int64_t tokens_of(std::size_t begin, std::size_t end) const {
    return std::max<std::int64_t>(1, count_(text_.substr(begin, end - begin)));
  }

  // The same for a piece with the white space around it, unless that alone makes it too long.
  [[nodiscard]] std::int64_t counted(std::size_t begin, std::size_t end) const {
    const auto tokens = tokens_of(begin, end);
    if (tokens <= o_.max_tokens) return tokens;
    const auto size = end - begin;
    trim(text_, begin, end);
    return end - begin < size ? tokens_of(begin, end) : tokens;
  }

  [[nodiscard]] Unit unit_of(const Block& block) const {
    Unit unit;
    unit.begin = block.begin;
    unit.end = block.end;
    if (!code_) trim(text_, unit.begin, unit.end);
    unit.tokens = tokens_of(unit.begin, unit.end);
    return unit;
  }

  void add_units(const Block& block, std::vector<Unit>& units) const {
    // Text that is surely too long for one passage is counted by its pieces only.
    const bool vast = static_cast<std::int64_t>((block.end - block.begin) / 64) > o_.max_tokens;
    if (!vast) {
      Unit unit = unit_of(block);
      if (unit.tokens <= o_.max_tokens) {
        unit.lead = block.kind == BlockKind::paragraph && leads(unit);
        if (code_) unit.start_cost = code_start_cost(unit.begin);
        // Very small neighbours become one unit, which bounds the work of joining.
        if (!units.empty() && !code_ && !unit.lead && !units.back().lead &&
            units.back().tokens + unit.tokens <= o_.min_tokens / 4) {
          units.back().end = unit.end;
          units.back().tokens += unit.tokens;
        } else {
          units.push_back(unit);
        }
        return;
      }
    }
    std::int64_t lead_tokens = 0;
    for (auto it = units.rbegin(); it != units.rend() && it->lead; ++it) lead_tokens += it->tokens;
    if (2 * lead_tokens > o_.max_tokens) lead_tokens = 0;
    split(block, lead_tokens, units);
  }

  // A line that looks like a heading, or anything short that ends in a colon.
  [[nodiscard]] bool leads(const Unit& unit) const {
    if (unit.tokens >= o_.min_tokens) return false;
    const auto s = text_.substr(unit.begin, unit.end - unit.begin);
    if (s.ends_with(':')) return true;
    if (s.find('\n') != std::string_view::npos || characters(s) > kMaxTitleChars) return false;
    if (std::string_view("-*+|>=~").find(s[0]) != std::string_view::npos) return false;
    if (std::string_view(".!?;,\"'").find(s.back()) != std::string_view::npos) return false;
    for (const std::string_view end : {"…", "”", "’", "»", "。", "！", "？", "।", "؟", "۔"}) {
      if (s.ends_with(end)) return false;
    }
    return std::count(s.begin(), s.end(), ' ') < kMaxTitleWords;
  }

  // Beginning a passage of code inside a definition costs more than at its first line.
  [[nodiscard]] double code_start_cost(std::size_t at) const {
    const char c = text_[at];
    if (c == ' ' || c == '\t') return 3;
    return c == '}' || c == ')' || c == ']' ? 5 : 0;
  }

  void split(const Block& block, std::int64_t lead_tokens, std::vector<Unit>& units) const {
    std::vector<Unit> pieces;
    if (block.kind == BlockKind::paragraph) {
      for (std::size_t at = block.begin; at < block.end;) {
        const auto next = next_sentence(text_.substr(0, block.end), at);
        // Where paragraphs follow each other without a blank line, each begins a line.
        const bool begins_line = at == block.begin || text_[at - 1] == '\n';
        add_pieces(at, next, begins_line ? 0.0 : 0.1, true, pieces);
        at = next;
        // Very short sentences go two by two, which bounds the work of cutting.
        if (pieces.size() > 1 &&
            16 * (pieces.back().tokens + pieces[pieces.size() - 2].tokens) <= o_.max_tokens) {
          const Unit last = pieces.back();
          pieces.pop_back();
          pieces.back().end = last.end;
          pieces.back().tokens += last.tokens;
        }
      }
    } else {
      bool after_blank = true;
      for (std::size_t at = block.begin; at < block.end;) {
        const Line line = line_at(text_, at);
        if (line.blank()) {
          after_blank = true;
        } else {
          const double cost = after_blank ? 0.0 : 0.2 + 0.1 * code_start_cost(line.begin);
          add_pieces(at, std::min(line.next, block.end), cost, false, pieces);
          after_blank = false;
        }
        at = line.next;
      }
    }
    // As few parts as fit, of sizes as equal as may be, rather at good borders.
    const auto max = o_.max_tokens;
    const auto starts = cheapest_cut(
        pieces.size(), [&](std::size_t i) { return pieces[i].tokens; },
        [&](std::size_t first, std::size_t last, std::int64_t sum) {
          const auto whole = sum + (first == 0 ? lead_tokens : 0);
          if (first < last && whole > max) {
            // The lead counts only for the run that begins at 0, which is the longest: every
            // shorter one was tried.
            return std::numeric_limits<double>::infinity();
          }
          return 1000.0 + squared(static_cast<double>(whole) / static_cast<double>(max)) +
                 (first > 0 ? pieces[first].start_cost : 0.0);
        });
    for (std::size_t i = 0; i < starts.size(); ++i) {
      const auto stop = i + 1 < starts.size() ? starts[i + 1] : pieces.size();
      Unit part = pieces[starts[i]];
      part.tokens = 0;
      for (auto j = starts[i]; j < stop; ++j) part.tokens += pieces[j].tokens;
      part.end = pieces[stop - 1].end;
      part.start_cost = code_ ? code_start_cost(part.begin) : 0.0;
      if (!code_) trim(text_, part.begin, part.end);
      units.push_back(part);
    }
  }

  // Adds [begin, end) as one piece if it is short enough, else its lines if there are several, else
  // its words.
  void add_pieces(std::size_t begin, std::size_t end, double start_cost, bool by_lines,
                  std::vector<Unit>& pieces) const {
    std::size_t left = begin, right = end;
    trim(text_, left, right);
    if (left == right) return;
    if (static_cast<std::int64_t>((end - begin) / 64) <= o_.max_tokens) {
      const auto tokens = counted(begin, end);
      if (tokens <= o_.max_tokens) {
        pieces.push_back({begin, right, tokens, start_cost, false, -1});
        return;
      }
    }
    if (by_lines && text_.substr(left, right - left).find('\n') != std::string_view::npos) {
      for (std::size_t at = begin; at < end;) {
        const auto next = std::min(line_at(text_, at).next, end);
        add_pieces(at, next, at == begin ? start_cost : 0.2, false, pieces);
        at = next;
      }
      return;
    }
    add_words(begin, right, start_cost, pieces);
  }

  // Pieces of about kChunkBytes that end between words; a longer word is one piece if it fits a
  // passage, else it is cut between characters into pieces that surely fit: a tokenizer makes at
  // most one token of a byte.
  void add_words(std::size_t begin, std::size_t end, double start_cost,
                 std::vector<Unit>& pieces) const {
    const auto small = std::min<std::size_t>(
        kChunkBytes, static_cast<std::size_t>(std::max<std::int64_t>(4, o_.max_tokens)));
    const auto add = [&](std::size_t from, std::size_t to, double cost) {
      pieces.push_back({from, to, counted(from, to), from == begin ? start_cost : cost, false, -1});
    };
    std::size_t from = begin, at = begin;
    while (at < end) {
      // One word with the white space before it.
      const std::size_t word = at;
      for (std::size_t n = 1; n > 0 && at < end; at += n) n = space_at(text_, at);
      const std::size_t letters = at;
      while (at < end && space_at(text_, at) == 0) ++at;
      if (at - from > small && word > from) {
        add(from, word, 0.5);
        from = word;
      }
      if (at - letters <= small) continue;
      if (static_cast<std::int64_t>(at - from) > o_.max_tokens &&
          tokens_of(from, at) > o_.max_tokens) {
        for (double cost = 0.5; from < at; cost = 1.0) {
          std::size_t to = std::min(std::max(from, from < letters ? letters : from) + small, at);
          while (to < at && !begins_character(text_[to])) --to;
          add(from, to, cost);
          from = to;
        }
      } else {
        add(from, at, 0.5);
        from = at;
      }
    }
    if (from < end) add(from, end, 0.5);
  }

  // Cuts a group's units into passages and opens the sections of its headings.
  void emit(const Group& group) {
    const auto& units = group.units;
    if (units.empty()) return;
    const auto min = o_.min_tokens, max = o_.max_tokens;
    const double target = static_cast<double>(min + max) / 2;
    const auto normal = [&](std::size_t i) { return units[i].tokens >= min; };
    std::vector<std::int64_t> normals(units.size() + 1, 0), others(units.size() + 1, 0);
    for (std::size_t i = 0; i < units.size(); ++i) {
      normals[i + 1] = normals[i] + (normal(i) ? 1 : 0);
      others[i + 1] = others[i] + (!normal(i) && !units[i].lead ? 1 : 0);
    }
    const auto starts = cheapest_cut(
        units.size(), [&](std::size_t i) { return units[i].tokens; },
        [&](std::size_t first, std::size_t last, std::int64_t sum) {
          const auto whole = normals[last + 1] - normals[first];
          if (first < last && (sum > max || (!fragmented_ && whole > 1)))
            return std::numeric_limits<double>::infinity();
          double cost = first > 0 ? units[first].start_cost : 0.0;
          if (sum < min)
            cost += 20 + 100.0 * static_cast<double>(min - sum) / static_cast<double>(min);
          // What leads stays with what it leads to, and rather stands alone than behind what it
          // does not belong to.
          if (units[last].lead && last + 1 < units.size()) cost += first < last ? 3000 : 1000;
          if (!fragmented_ && whole > 0) {
            cost +=
                10.0 * static_cast<double>(others[last + 1] - others[first]) +
                (first < last ? 0.5 * squared(static_cast<double>(sum) / static_cast<double>(max))
                              : 0.0);
          } else {
            cost += 4 * squared((static_cast<double>(sum) - target) / target);
          }
          return cost;
        });
    std::size_t headings = 0;
    for (std::size_t i = 0; i < starts.size(); ++i) {
      const auto stop = i + 1 < starts.size() ? starts[i + 1] : units.size();
      // The section that holds the passage whole is that of the heading it begins with, else the
      // one open before it.
      std::int64_t parent = open_.empty() ? -1 : open_.back().index;
      for (auto j = starts[i]; j < stop; ++j) {
        if (units[j].heading < 0) continue;
        const auto section =
            open_section(units[j], group.levels[static_cast<std::size_t>(units[j].heading)]);
        if (j == starts[i]) parent = section;
        ++headings;
      }
      std::int64_t tokens = 0;
      for (auto j = starts[i]; j < stop; ++j) tokens += units[j].tokens;
      add_span(units[starts[i]].begin, units[stop - 1].end, parent, tokens, "passage");
      for (const auto& section : open_) {
        auto& span = spans_[static_cast<std::size_t>(section.index)];
        span.end = static_cast<std::int64_t>(units[stop - 1].end);
        span.tokens += tokens;
      }
    }
    MNEME_ASSERT(headings == group.levels.size());
  }

  std::int64_t open_section(const Unit& heading, int level) {
    close_sections(level);
    const auto parent = open_.empty() ? -1 : open_.back().index;
    const auto index = add_span(heading.begin, heading.end, parent, 0, "section");
    open_.push_back({level, index});
    return index;
  }

  void close_sections(int level) {
    while (!open_.empty() && open_.back().level >= level) open_.pop_back();
  }

  std::int64_t add_span(std::size_t begin, std::size_t end, std::int64_t parent,
                        std::int64_t tokens, const char* kind) {
    const auto index = static_cast<std::int64_t>(spans_.size());
    Span span;
    span.begin = static_cast<std::int64_t>(begin);
    span.end = static_cast<std::int64_t>(end);
    span.parent = parent;
    span.order = index;
    span.tokens = tokens;
    span.kind = kind;
    spans_.push_back(std::move(span));
    return index;
  }

  struct OpenSection {
    int level;
    std::int64_t index;
  };

  std::string_view text_;
  bool code_, fragmented_ = false;
  const CountTokens& count_;
  SpanOptions o_;
  std::vector<Span> spans_;
  std::vector<OpenSection> open_;
};

}  // namespace
}  // namespace text

std::vector<Span> cut_spans(std::string_view text, Media media, const CountTokens& count,
                            const SpanOptions& options) {
  if (options.min_tokens < 1 || options.min_tokens > options.max_tokens) {
    throw Error(Errc::invalid,
                fmt::format("spans of {} to {} tokens: wanted 1 <= min_tokens <= max_tokens",
                            options.min_tokens, options.max_tokens));
  }
  if (media != Media::text && media != Media::code) {
    throw Error(Errc::unsupported,
                fmt::format("a document of media '{}' is not cut as text", media_name(media)));
  }
  return text::SpanCutter(text, media, count, options).cut();
}

}  // namespace mneme
