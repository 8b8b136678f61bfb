#include "mneme/probes/needles.h"

#include "mneme/core/error.h"
#include "mneme/core/generator.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <set>

namespace mneme {
namespace {

using Words = std::array<std::string_view, 12>;

/// What one set of needles is made of. Nothing of it is in the other.
struct NeedleWords {
  struct Form {
    std::string_view fact, question;  // "{}" is the place
  };
  std::array<Form, 3> forms;
  Words places, kinds, things;
  std::array<std::string_view, 6> counts;
};

constexpr std::array<NeedleWords, 2> kNeedles = {
    {{{{{"Behind the door of the old mill at {} stand",
         "What stands behind the door of the old mill at {}?"},
        {"The widow Harkness of {} left her nephew",
         "What did the widow Harkness of {} leave her nephew?"},
        {"On the third shelf of the chapel in {} lie",
         "What lies on the third shelf of the chapel in {}?"}}},
      {"Arnholm", "Brackwater", "Cullen Bay", "Dunmorrow", "Eskdale", "Farrowby", "Glenhaven",
       "Hartsmere", "Inverloch", "Kettlewick", "Lornfield", "Marrowdale"},
      {"copper", "walnut", "velvet", "crooked", "frozen", "painted", "hollow", "scarlet", "rusty",
       "striped", "marble", "polished"},
      {"lanterns", "violins", "anchors", "umbrellas", "kettles", "trumpets", "ladders", "saddles",
       "mirrors", "baskets", "compasses", "barrels"},
      {"seven", "eleven", "nineteen", "thirty", "fourteen", "sixty"}},
     {{{{"In the dry well of {} the children found",
         "What did the children find in the dry well of {}?"},
        {"For his tower the watchmaker of {} bought",
         "What did the watchmaker of {} buy for his tower?"},
        {"The ferry to {} sank with a cargo of",
         "What was the cargo of the ferry to {} that sank?"}}},
      {"Nordhaven", "Oakshott", "Pellworth", "Quarrington", "Redcliffe", "Silverton", "Thornbury",
       "Underwood", "Vesterby", "Wexcombe", "Yarlside", "Zellingen"},
      {"golden", "wooden", "silken", "broken", "purple", "carved", "speckled", "narrow", "dusty",
       "woven", "crystal", "tangled"},
      {"bells", "harps", "candles", "feathers", "buttons", "clocks", "wheels", "pillows",
       "whistles", "bottles", "telescopes", "blankets"},
      {"five", "twelve", "twenty", "forty", "sixteen", "ninety"}}}};

template <class List>
std::string_view pick_word(const List& list, Generator& generator) {
  return list.at(static_cast<std::size_t>(generator.uniform() * static_cast<double>(list.size())));
}

std::string put(std::string_view form, std::string_view place) {
  std::string out(form);
  return out.replace(out.find("{}"), 2, place);
}

/// Whether a sentence, or a line, ends with this token.
bool ends_here(const Tokenizer& tokenizer, std::int32_t id) {
  const auto bytes = tokenizer.token_bytes(id);
  return !bytes.empty() && std::string_view(".!?\n").find(bytes.back()) != std::string_view::npos;
}

/// Ranks of numbers, from 0; equal ones share their mean rank.
at::Tensor ranks(const at::Tensor& numbers) {
  const auto x = numbers.to(at::kDouble).flatten().contiguous();
  const auto n = x.numel();
  const auto* value = x.const_data_ptr<double>();
  std::vector<std::int64_t> order(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) order[static_cast<std::size_t>(i)] = i;
  std::sort(order.begin(), order.end(),
            [&](std::int64_t a, std::int64_t b) { return value[a] < value[b]; });
  auto out = at::empty({n}, at::kDouble);
  auto* rank = out.mutable_data_ptr<double>();
  for (std::size_t begin = 0; begin < order.size();) {
    auto end = begin + 1;
    while (end < order.size() && value[order[end]] == value[order[begin]]) ++end;
    for (auto i = begin; i < end; ++i) rank[order[i]] = static_cast<double>(begin + end - 1) / 2;
    begin = end;
  }
  return out;
}

}  // namespace

NeedleFact draw_needle(int set, std::int64_t index) {
  const auto& words = kNeedles.at(static_cast<std::size_t>(set));
  auto generator =
      Generator(static_cast<std::uint64_t>(set)).split(static_cast<std::uint64_t>(index));
  const auto& form = words.forms.at(static_cast<std::size_t>(index) % words.forms.size());
  const auto place = pick_word(words.places, generator);
  const auto count = pick_word(words.counts, generator), kind = pick_word(words.kinds, generator),
             thing = pick_word(words.things, generator);
  auto other_kind = kind, other_thing = thing;
  while (other_kind == kind) other_kind = pick_word(words.kinds, generator);
  while (other_thing == thing) other_thing = pick_word(words.things, generator);
  NeedleFact out;
  out.before = " " + put(form.fact, place);
  out.answer = fmt::format(" {} {} {} and {} {}", count, kind, thing, other_kind, other_thing);
  out.behind = ".";
  out.question = fmt::format("\n\nQuestion: {}\nAnswer:", put(form.question, place));
  return out;
}

NeedlePrompt needle_prompt(const LanguageModel& model, std::span<const std::int32_t> filler,
                           const NeedleFact& fact, std::int64_t from, std::int64_t tokens,
                           double depth) {
  const auto& tokenizer = *model.tokenizer;
  const auto start = tokenizer.encode("", {true, false}), before = tokenizer.encode(fact.before),
             answer = tokenizer.encode(fact.answer), behind = tokenizer.encode(fact.behind),
             question = tokenizer.encode(fact.question);
  const auto fixed = static_cast<std::int64_t>(start.size() + before.size() + 2 * answer.size() +
                                               behind.size() + question.size());
  if (tokens <= fixed) {
    throw Error(Errc::invalid, fmt::format("a needle and its question take {} tokens: {} leave no "
                                           "room for a text",
                                           fixed, tokens));
  }
  const auto all = static_cast<std::int64_t>(filler.size());
  const auto n = std::min(tokens - fixed, all);
  const auto first = std::clamp<std::int64_t>(from, 0, all - n);
  const auto text = filler.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(n));
  auto cut = static_cast<std::size_t>(depth * static_cast<double>(n));
  while (cut > 0 && cut < text.size() && !ends_here(tokenizer, text[cut - 1])) ++cut;
  NeedlePrompt out;
  const auto add = [&](const auto& ids) {
    out.ids.insert(out.ids.end(), ids.begin(), ids.end());
    return static_cast<std::int64_t>(out.ids.size());
  };
  add(start);
  out.needle = add(text.first(cut));
  out.answer = add(before);
  out.answer_tokens = static_cast<std::int64_t>(answer.size());
  add(answer);
  out.needle_tokens = add(behind) - out.needle;
  add(text.subspan(cut));
  out.asked = add(question);
  add(std::span(answer).first(answer.size() - 1));
  return out;
}

Copied copied(const at::Tensor& logits, std::span<const std::int32_t> ids, std::int64_t answer,
              std::span<const std::int32_t> written) {
  const auto H = logits.size(0), n = logits.size(1);
  MNEME_ASSERT(n == static_cast<std::int64_t>(written.size()) &&
               logits.size(2) == static_cast<std::int64_t>(ids.size()));
  const auto most = logits.argmax(2).contiguous();  // [Hq,n]
  const auto* looked = most.const_data_ptr<std::int64_t>();
  const std::set<std::int32_t> different(written.begin(), written.end());
  Copied out{at::zeros({H}, at::kDouble), at::zeros({H}, at::kDouble)};
  for (std::int64_t h = 0; h < H; ++h) {
    std::set<std::int32_t> found;
    std::int64_t steps = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      const auto j = looked[h * n + i];
      const auto token = written[static_cast<std::size_t>(i)];
      if (j < answer || j >= answer + n || ids[static_cast<std::size_t>(j)] != token) continue;
      found.insert(token);
      ++steps;
    }
    out.tokens.mutable_data_ptr<double>()[h] =
        static_cast<double>(found.size()) / static_cast<double>(different.size());
    out.steps.mutable_data_ptr<double>()[h] = static_cast<double>(steps) / static_cast<double>(n);
  }
  return out;
}

at::Tensor evidence_share(const at::Tensor& logits, std::int64_t first, std::int64_t n) {
  return logits.to(at::kDouble).softmax(-1).narrow(-1, first, n).sum(-1);
}

void watch_rows(const LanguageModel& model, const AttentionShape& shape,
                const std::vector<std::int32_t>& ids, std::int64_t first, std::int64_t n,
                const std::function<void(std::int64_t layer, const at::Tensor& logits)>& see) {
  const auto T = static_cast<std::int64_t>(ids.size());
  const auto places = at::arange(T, at::kLong), rows = places.narrow(0, first, n);
  watch_attention(
      model, ids, T, [](std::int64_t) {},
      [&](std::int64_t layer, std::int64_t, const at::Tensor& queries, const at::Tensor& keys) {
        see(layer, attention_logits(turned(shape, queries.narrow(1, first, n), rows),
                                    turned(shape, keys, places), rows));
      });
}

double rank_correlation(const at::Tensor& a, const at::Tensor& b) {
  const auto x = ranks(a), y = ranks(b);
  const auto dx = x - x.mean(), dy = y - y.mean();
  const auto size = (dx.square().sum() * dy.square().sum()).sqrt().item<double>();
  return size > 0 ? (dx * dy).sum().item<double>() / size : 0;
}

}  // namespace mneme
