// The reading task: its sequences are what a memory runs, its draws follow from their place alone,
// its splits share nothing.
#include "mneme/core/error.h"
#include "mneme/core/registry.h"
#include "mneme/memory/reader.h"
#include "mneme/tasks/material.h"
#include "mneme/tasks/reading_data.h"
#include "mneme/tasks/squad.h"
#include "mneme/train/packing.h"
#include "mneme/train/task.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "tests/smollm2.h"
#include "tests/tiny_models.h"
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <gtest/gtest.h>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <unistd.h>
#include <vector>

namespace mneme::tasks {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

/// Real data, where it is.
fs::path data_folder() {
  const auto* given = std::getenv("MNEME_DATA");
  return given ? fs::path(given) : fs::path("../shared/data");
}

/// A folder of its own with a made-up SQuAD in it: 8 articles, of which one is for tuning and one is
/// of the test split, with 4 paragraphs and 3 answerable questions each.
class ReadingFiles : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directories(folder_ / "squad");
    json one{{"data", json::array()}}, two = one;
    const std::vector<std::string> titles = {"Amazon_rainforest", "Oxygen",  "Harbours", "Bells",
                                             "Orchards",          "Ferries", "Kilns",    "Clocks"};
    for (std::size_t a = 0; a < titles.size(); ++a) {
      json article{{"title", titles[a]}, {"paragraphs", json::array()}}, vain = article;
      for (std::size_t p = 0; p < 4; ++p) {
        const auto name = fmt::format("{}{}", std::string(1, static_cast<char>('A' + a)), p);
        const auto context = fmt::format(
            "{0} number {1} stands in the town of Vale{2}. It was built by the mason Ravel{2} in "
            "{3}, "
            "when the river was low and stone was cheap, and it was paid for with a tax on salt. "
            "Its "
            "keeper is called \"old Tam{2}\" and counts {4} visitors in a good year, most of them "
            "from the villages up the valley, who come on foot.",
            titles[a], p, name, 1500 + 37 * a + 5 * p, 200 + 10 * a + p);
        const auto ask = [](const std::string& id, const std::string& text,
                            std::vector<std::string> answers) {
          json out{{"id", id}, {"question", text}, {"answers", json::array()}};
          for (auto& answer : answers)
            out["answers"].push_back({{"text", answer}, {"answer_start", 0}});
          out["is_impossible"] = answers.empty();
          return out;
        };
        article["paragraphs"].push_back(
            {{"context", context},
             {"qas",
              json::array(
                  {ask(name + "-who", fmt::format("Who built {} number {}?", titles[a], p),
                       {fmt::format("the mason Ravel{}", name), fmt::format("Ravel{}", name)}),
                   ask(name + "-when", fmt::format("When was {} number {} built?", titles[a], p),
                       {fmt::format("{}", 1500 + 37 * a + 5 * p)}),
                   ask(name + "-keeper",
                       fmt::format("What is the keeper of {} number {} called?", titles[a], p),
                       {fmt::format("\"old Tam{}\"", name)})})}});
        vain["paragraphs"].push_back(
            {{"context", context},
             {"qas",
              json::array({ask(name + "-vain",
                               fmt::format("Who burnt down {} number {}?", titles[a], p), {})})}});
      }
      one["data"].push_back(article);
      two["data"].push_back(vain);
    }
    std::ofstream(folder_ / "squad/dev-v1.1.json.gz") << one.dump();
    std::ofstream(folder_ / "squad/dev-v2.0.json.gz") << two.dump();
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name) << text;
    return folder_ / name;
  }
  [[nodiscard]] std::unique_ptr<Task> task(const std::string& spec,
                                           const LanguageModel* model = check::smollm2()) const {
    Task::Setup setup;
    setup.data = folder_;
    setup.model = [model] { return model; };
    return registry().make<Task>(spec, setup);
  }

  fs::path folder_ = fs::temp_directory_path() / fmt::format("reading_test_{}", ::getpid());
};

/// The parts of an example by its segments.
struct Parts {
  struct Question {
    std::vector<std::int32_t> ids;
    std::vector<std::int64_t> learned;  // places of `ids` after which a token is learned
    std::int64_t position = 0;
    std::string said;
  };
  std::vector<std::int32_t> prefix;
  std::vector<std::vector<std::int32_t>> spans;
  std::vector<Question> questions;
};

Parts parts_of(const Example& example, const Tokenizer& tokenizer) {
  Parts out;
  std::vector<std::int32_t> passages{0};  // and the prefix
  for (std::size_t s = 0; s < example.sees.size(); ++s) {
    std::vector<std::int32_t> ids, said;
    std::vector<std::int64_t> learned;
    std::int64_t position = -1;
    for (std::size_t t = 0; t < example.ids.size(); ++t) {
      if (example.segments[t] != static_cast<std::int32_t>(s)) continue;
      if (position < 0) position = example.positions[t];
      EXPECT_EQ(example.positions[t], position + static_cast<std::int64_t>(ids.size()));
      if (example.weights[t] > 0) {
        EXPECT_EQ(example.weights[t], 1.0F);
        learned.push_back(static_cast<std::int64_t>(ids.size()));
        said.push_back(example.ids[t + 1]);
        EXPECT_EQ(example.segments[t + 1], static_cast<std::int32_t>(s))
            << "learned across a border";
      }
      ids.push_back(example.ids[t]);
    }
    std::int64_t placed = 0;
    for (const auto& span : out.spans) placed += static_cast<std::int64_t>(span.size());
    const auto& sees = example.sees[s];
    if (sees.empty()) {  // the prefix, or a copy of it right before the next passage
      EXPECT_EQ(position, placed);
      EXPECT_TRUE(learned.empty());
      if (s == 0) out.prefix = ids;
      EXPECT_EQ(ids, out.prefix);
    } else if (sees.size() == 1) {
      EXPECT_TRUE(out.questions.empty()) << "a passage behind a question";
      EXPECT_TRUE(learned.empty());
      EXPECT_EQ(sees[0], static_cast<std::int32_t>(s) - 1);
      EXPECT_TRUE(example.sees[s - 1].empty()) << "a passage sees a prefix only";
      EXPECT_EQ(position, placed + static_cast<std::int64_t>(out.prefix.size()));
      out.spans.push_back(ids);
      passages.push_back(static_cast<std::int32_t>(s));
    } else {
      EXPECT_EQ(sees, passages) << "a question sees the prefix and the passages";
      EXPECT_EQ(position, placed + static_cast<std::int64_t>(out.prefix.size()));
      out.questions.push_back({ids, learned, position, tokenizer.decode(said)});
    }
  }
  return out;
}

std::string text_of(const std::vector<std::vector<std::int32_t>>& spans,
                    const Tokenizer& tokenizer) {
  std::string out;
  for (const auto& span : spans) out += tokenizer.decode(span);
  return out;
}

/// The logits of the learned places of every question, as a memory computes them: each span alone
/// behind the prefix, its entries placed, the question run behind them.
std::vector<at::Tensor> as_asked(const LanguageModel& model, const Reader& reader,
                                 const Parts& parts, bool coded) {
  const c10::InferenceMode inference;
  auto placed = reader.prefix();
  for (const auto& ids : parts.spans) {
    SpanState span{static_cast<std::int64_t>(ids.size()), {}};
    if (coded) {
      span = reader.decode(reader.compute(std::vector<std::vector<std::int32_t>>{ids}).front(),
                           span.tokens, reader.codec());
    } else {
      auto alone = reader.prefix();
      reader.run(alone, ids);
      for (const auto* store : kv_stores(std::as_const(alone))) {
        span.layers.push_back(
            store->read(0, reader.prefix_tokens(), reader.prefix_tokens() + span.tokens));
      }
    }
    reader.place(placed, span);
  }
  std::vector<at::Tensor> out;
  for (const auto& question : parts.questions) {
    auto state = placed.fork();
    EXPECT_EQ(state.positions.at(0), question.position);
    const auto logits = model.run(question.ids, state, LogitsAt::all).logits[0];
    out.push_back(logits.index_select(0, at::tensor(question.learned, at::kLong)));
  }
  return out;
}

TEST_F(ReadingFiles, OneMaskedPassEqualsPlacedStatesAndTheQuestionBehindThem) {
  MNEME_NEEDS_SMOLLM2();
  const auto* model = check::smollm2(Compute::f32);
  const auto reading = task("reading(several=0.5, spans=3, questions=4)", model);
  const std::shared_ptr<const LanguageModel> borrowed(std::shared_ptr<const LanguageModel>(),
                                                      model);
  const Reader reader(borrowed, Prompt::from_json(reading->notes().at("prompt")), Chain{});
  EXPECT_LE(reader.prefix_tokens(), 32);
  std::set<std::size_t> seen;  // how many spans were compared
  for (std::int64_t i = 0; i < reading->size() && seen.size() < 3; ++i) {
    Generator generator(1);
    const auto example = reading->example(i, 0, generator);
    const auto parts = parts_of(example, *model->tokenizer);
    if (!seen.insert(parts.spans.size()).second) continue;
    EXPECT_EQ(parts.prefix, model->tokenizer->encode(reader.prompt().prefix));
    auto packed = pack({&example}, model->model->shape().context);
    packed.batch.mode = Mode::infer;
    packed.batch.compute = Compute::f32;
    at::Tensor logits;
    {
      const c10::InferenceMode inference;
      auto state = model->model->start(1);
      logits = model->model->forward(packed.batch, state).logits;
    }
    const auto expected = at::cat(as_asked(*model, reader, parts, false));
    ASSERT_EQ(logits.sizes(), expected.sizes());
    const auto difference = (logits - expected).abs().max().item<double>();
    EXPECT_LT(difference, 1e-3) << parts.spans.size() << " spans";
    RecordProperty(fmt::format("largest_difference_{}_spans", parts.spans.size()),
                   fmt::format("{:.2g}", difference));
    // What a memory stores are 16-bit numbers.
    const auto stored = at::cat(as_asked(*model, reader, parts, true));
    EXPECT_LT((logits - stored).square().mean().sqrt().item<double>(), 0.05);
    // One prefix for all is further from the later passages than it was when a memory read them.
    if (parts.spans.size() > 1) {
      auto shared = example;
      for (auto& sees : shared.sees) {
        if (sees.size() == 1) sees = {0};
      }
      auto other = pack({&shared}, model->model->shape().context);
      other.batch.mode = Mode::infer;
      other.batch.compute = Compute::f32;
      const c10::InferenceMode inference;
      auto state = model->model->start(1);
      EXPECT_GT(
          (model->model->forward(other.batch, state).logits - expected).abs().max().item<double>(),
          0.1);
    }
  }
  EXPECT_EQ(seen, (std::set<std::size_t>{1, 2, 3}));
}

TEST_F(ReadingFiles, LearnsTheAnswerInThePassagesOrNotFoundAndTheMarkThatEndsIt) {
  MNEME_NEEDS_SMOLLM2();
  const auto& tokenizer = *check::smollm2()->tokenizer;
  const auto reading = task("reading()");
  EXPECT_EQ(reading->size(), 24);  // 6 articles of 4 paragraphs
  Generator generator(7);
  std::int64_t names = 0, keepers = 0;
  for (std::int64_t i = 0; i < reading->size(); ++i) {
    const auto parts = parts_of(reading->example(i, 0, generator), tokenizer);
    const auto text = text_of(parts.spans, tokenizer);
    ASSERT_FALSE(parts.questions.empty());
    for (const auto& question : parts.questions) {
      ASSERT_TRUE(question.said.ends_with('"')) << question.said;
      const auto answer = question.said.substr(0, question.said.size() - 1);
      const auto asked = tokenizer.decode(question.ids);
      EXPECT_EQ(answer.find('"'), std::string::npos) << answer;
      EXPECT_TRUE(asked.starts_with("Question: ")) << asked;
      EXPECT_TRUE(asked.ends_with("\nAnswer: \"" + question.said)) << asked;
      // Every fact has a name or number of its own: whether the passages tell it can be seen.
      const auto who = asked.substr(0, asked.find('\n'));
      const auto subject = who.find(" number ");
      ASSERT_NE(subject, std::string::npos) << who;
      const auto word = who.rfind(' ', subject - 1);
      const auto thing = who.substr(word + 1, subject - word + 8);  // "Bells number 2"
      const bool told =
          text.find(thing) != std::string::npos && who.find("burnt") == std::string::npos;
      EXPECT_EQ(answer != "not found", told) << who << " -> " << answer << "\n" << text;
      if (!told) continue;
      EXPECT_TRUE(holds_words(text, answer)) << answer;
      // The shortest of the answers given.
      if (who.find("Who built") != std::string::npos)
        names += answer.starts_with("Ravel") ? 1 : -1000;
      if (who.find("called") != std::string::npos)
        keepers += answer.starts_with("old Tam") ? 1 : -1000;
    }
  }
  EXPECT_GT(names, 10);
  EXPECT_GT(keepers, 10);
}

TEST_F(ReadingFiles, SharesOfAbsentQuestionsAndOfKindsAreThoseAskedFor) {
  MNEME_NEEDS_SMOLLM2();
  const auto& tokenizer = *check::smollm2()->tokenizer;
  for (const double absent : {0.0, 0.25, 0.6}) {
    const auto reading = task(fmt::format("reading(absent={}, several=0.4)", absent));
    Generator generator(3);
    double questions = 0, refused = 0, examples = 0, several = 0, own = 0, elsewhere = 0;
    for (std::int64_t pass = 0; pass < 20; ++pass) {
      for (std::int64_t i = 0; i < reading->size(); ++i) {
        const auto parts = parts_of(reading->example(i, pass, generator), tokenizer);
        EXPECT_LE(parts.spans.size(), 3U);
        EXPECT_LE(parts.questions.size(), 7U);
        ++examples;
        several += parts.spans.size() > 1 ? 1 : 0;
        const auto text = text_of(parts.spans, tokenizer);
        for (const auto& question : parts.questions) {
          ++questions;
          if (question.said != "not found\"") continue;
          ++refused;
          const auto asked = tokenizer.decode(question.ids);
          const auto end = asked.find(" number ");
          const auto begin = asked.rfind(' ', end - 1) + 1;
          own += asked.find("burnt") != std::string::npos ? 1 : 0;
          elsewhere += text.find(asked.substr(begin, end - begin)) == std::string::npos ? 1 : 0;
        }
      }
    }
    EXPECT_NEAR(refused / questions, absent, 0.03) << refused << " of " << questions;
    EXPECT_NEAR(several / examples, 0.4, 0.06);
    if (absent > 0) {  // all kinds there are
      EXPECT_GT(own / refused, 0.15);
      EXPECT_GT(elsewhere / refused, 0.05);
      EXPECT_GT(1 - (own + elsewhere) / refused, 0.15) << "of other passages of the article";
    }
  }
  const auto alone = task("reading(spans=1, several=1, absent=0)");
  Generator generator(3);
  for (std::int64_t i = 0; i < alone->size(); ++i) {
    const auto parts = parts_of(alone->example(i, 0, generator), tokenizer);
    EXPECT_EQ(parts.spans.size(), 1U);
    EXPECT_EQ(parts.questions.size(), 3U);
  }
}

TEST_F(ReadingFiles, ExamplesFollowFromIndexPassAndSeedAlone) {
  MNEME_NEEDS_SMOLLM2();
  const auto one = task("reading()"), two = task("reading()");
  const auto draw = [](const Task& task, std::int64_t i, std::int64_t pass, std::uint64_t seed) {
    Generator generator(seed);
    return task.example(i, pass, generator);
  };
  const auto same = [](const Example& a, const Example& b) {
    return a.ids == b.ids && a.positions == b.positions && a.segments == b.segments &&
           a.sees == b.sees && a.weights == b.weights;
  };
  std::vector<Example> forward;
  int other_pass = 0, other_seed = 0;
  for (std::int64_t i = 0; i < one->size(); ++i) forward.push_back(draw(*one, i, 2, 5));
  for (std::int64_t i = one->size(); i-- > 0;) {
    EXPECT_TRUE(same(forward[static_cast<std::size_t>(i)], draw(*two, i, 2, 5)));
    other_pass += same(forward[static_cast<std::size_t>(i)], draw(*two, i, 3, 5)) ? 0 : 1;
    other_seed += same(forward[static_cast<std::size_t>(i)], draw(*two, i, 2, 6)) ? 0 : 1;
  }
  EXPECT_GT(other_pass, 20);
  EXPECT_GT(other_seed, 20);
}

TEST_F(ReadingFiles, NeverReadsATestArticle) {
  MNEME_NEEDS_SMOLLM2();
  const auto& tokenizer = *check::smollm2()->tokenizer;
  const auto all_text = [&](const Task& task) {
    std::string out;
    Generator generator(1);
    for (std::int64_t pass = 0; pass < 5; ++pass) {
      for (std::int64_t i = 0; i < task.size(); ++i)
        out += tokenizer.decode(task.example(i, pass, generator).ids);
    }
    return out;
  };
  const auto train = all_text(*task("reading(absent=0.5)")),
             tuning = all_text(*task("reading(split=tuning, absent=0.5)"));
  EXPECT_EQ(train.find("Oxygen"), std::string::npos);
  EXPECT_EQ(tuning.find("Oxygen"), std::string::npos);
  EXPECT_EQ(train.find("Amazon"), std::string::npos);
  EXPECT_NE(tuning.find("Amazon"), std::string::npos);
  EXPECT_EQ(tuning.find("Bells"), std::string::npos);
  EXPECT_THROW(static_cast<void>(task("reading(split=test)")), Error);
}

TEST_F(ReadingFiles, ValidatesOnTuningArticlesThroughTheReader) {
  MNEME_NEEDS_SMOLLM2();
  const auto reading = task("reading(several=0, absent=0)");
  const auto figures = reading->validate(*check::smollm2(), 8);
  ASSERT_EQ(figures.size(), 4U);
  for (const auto& [name, value] : figures) {
    EXPECT_GE(value, 0) << name;
    EXPECT_LE(value, 1) << name;
  }
  EXPECT_GE(figures.at("f1"), figures.at("em"));
  // Asked one by one by hand, over all 12 questions of the tuning article.
  const std::shared_ptr<const LanguageModel> borrowed(std::shared_ptr<const LanguageModel>(),
                                                      check::smollm2());
  const Reader reader(borrowed, Prompt::from_json(reading->notes().at("prompt")), Chain{});
  const auto data = squad_reading(folder_ / "squad", Split::tuning);
  double f1 = 0, answerable = 0, refused = 0, in_vain = 0;
  for (const auto& question : data.questions) {
    const auto& text = data.texts.at(question.of_text);
    const auto [begin, end] = text.paragraphs.at(question.paragraph);
    const auto ids = reader.span_ids(
        text.text.substr(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin)));
    std::vector<State> rows;
    rows.push_back(reader.prefix());
    reader.place(rows.back(),
                 reader.decode(reader.compute(std::vector<std::vector<std::int32_t>>{ids}).front(),
                               static_cast<std::int64_t>(ids.size()), reader.codec()));
    const auto answer = reader.answer(std::move(rows), question.text, 24).rows.front().text;
    if (question.answers.empty()) {
      ++in_vain;
      refused += normalised(answer) == "not found" ? 1 : 0;
    } else {
      ++answerable;
      f1 += word_f1(answer, question.answers);
    }
  }
  const auto all = reading->validate(*check::smollm2(), 0);
  EXPECT_EQ(answerable, 12);
  EXPECT_EQ(in_vain, 4);
  EXPECT_NEAR(all.at("f1"), f1 / answerable, 0.1);  // other batches round otherwise
  EXPECT_NEAR(all.at("refused_absent"), refused / in_vain, 0.26);
}

TEST_F(ReadingFiles, AUsersOwnQuestionsAreSplitByPassage) {
  MNEME_NEEDS_SMOLLM2();
  std::string lines;
  for (int i = 0; i < 60; ++i) {
    lines += json{{"text",
                   fmt::format("The shed {} is painted grey{} and holds {} rakes.", i, i, i + 100)},
                  {"question", fmt::format("What colour is shed {}?", i)},
                  {"answers", {fmt::format("grey{}", i)}}}
                 .dump() +
             "\n\n";
    lines += json{{"passage",
                   fmt::format("The shed {} is painted grey{} and holds {} rakes.", i, i, i + 100)},
                  {"question", "Who sold it?"},
                  {"answers", json::array()},
                  {"source", "questions.jsonl"},
                  {"id", i}}
                 .dump() +
             "\n";
  }
  const auto file = write("questions.jsonl", lines);
  const auto train = own_reading(file, Split::train), tuning = own_reading(file, Split::tuning);
  EXPECT_EQ(train.texts.size() + tuning.texts.size(), 60U);  // a passage in two lines is one
  EXPECT_GE(tuning.texts.size(), 1U);
  EXPECT_LE(tuning.texts.size(), 15U);
  EXPECT_EQ(train.questions.size(), 2 * train.texts.size());
  std::set<std::string> in_train;
  for (const auto& text : train.texts) in_train.insert(text.text);
  for (const auto& text : tuning.texts) EXPECT_FALSE(in_train.contains(text.text));
  EXPECT_TRUE(own_reading(file, Split::test).texts.empty());

  // By name, and in place of the folder of data sets.
  EXPECT_EQ(task("reading(data=\"questions.jsonl\", several=0, absent=0)")->size(),
            static_cast<std::int64_t>(train.texts.size()));
  Task::Setup setup;
  setup.data = file;
  setup.model = [] { return check::smollm2(); };
  EXPECT_EQ(registry().make<Task>("reading(several=0, absent=0)", setup)->size(),
            static_cast<std::int64_t>(train.texts.size()));
  // Together with a data set that has a name.
  EXPECT_EQ(task("reading(data=\"squad+questions.jsonl\", several=0, absent=0)")->size(),
            24 + static_cast<std::int64_t>(train.texts.size()));

  // One passage alone is for training; one whose questions it answers none of is asked in vain.
  write("one.jsonl", R"({"text": "Nothing much.", "question": "Who?", "answers": []})");
  const auto vain = task("reading(data=\"one.jsonl\", several=0, absent=0)");
  ASSERT_EQ(vain->size(), 1);
  Generator generator(1);
  const auto parts = parts_of(vain->example(0, 0, generator), *check::smollm2()->tokenizer);
  ASSERT_EQ(parts.questions.size(), 1U);
  EXPECT_EQ(parts.questions[0].said, "not found\"");
  EXPECT_TRUE(vain->validate(*check::smollm2(), 5).empty());
}

/// A question that its own paragraph does not answer may have its answer in another one.
TEST_F(ReadingFiles, NotFoundIsNotTaughtOfAQuestionThatAnotherPlacedPassageAnswers) {
  MNEME_NEEDS_SMOLLM2();
  std::string lines;
  const auto add = [&](const std::string& text, const std::string& question,
                       std::vector<std::string> answers) {
    lines += json{{"text", text}, {"question", question}, {"answers", answers}, {"source", "sheds"}}
                 .dump() +
             "\n";
  };
  for (int i = 0; i < 10; ++i) {
    const auto text = fmt::format("The shed by the river, number {}, was painted grey{}.", i, i);
    add(text, fmt::format("What colour is shed {}?", i), {fmt::format("grey{}", i)});
    add(text, "Who sold it?", {});
    add(text, fmt::format("what colour is the shed {}", (i + 1) % 10), {});
  }
  write("own.jsonl", lines);
  const auto& tokenizer = *check::smollm2()->tokenizer;
  const auto reading = task("reading(data=\"own.jsonl\", several=1, absent=0.6)");
  Generator generator(1);
  int refused = 0, elsewhere = 0;
  for (std::int64_t pass = 0; pass < 40; ++pass) {
    for (std::int64_t i = 0; i < reading->size(); ++i) {
      const auto parts = parts_of(reading->example(i, pass, generator), tokenizer);
      const auto text = text_of(parts.spans, tokenizer);
      for (const auto& question : parts.questions) {
        if (question.said != "not found\"") continue;
        ++refused;
        const auto asked = tokenizer.decode(question.ids);
        const auto at = asked.find("shed ");
        if (at == std::string::npos) continue;
        ++elsewhere;
        const auto number = asked.substr(at + 5, 1);
        EXPECT_EQ(text.find("grey" + number), std::string::npos) << asked << "\n" << text;
      }
    }
  }
  EXPECT_GT(refused, 100);
  EXPECT_GT(elsewhere, 20) << "it is asked where no placed passage answers it";
}

TEST_F(ReadingFiles, CountsTheAnswersThatCannotBeLearned) {
  MNEME_NEEDS_SMOLLM2();
  const auto made = [&](const std::vector<json>& lines) {
    std::string text;
    for (const auto& line : lines) text += line.dump() + "\n";
    write("own.jsonl", text);
    testing::internal::CaptureStderr();
    std::string what;
    try {
      static_cast<void>(task("reading(data=\"own.jsonl\", several=0, absent=0)"));
    } catch (const Error& e) {
      what = e.what();
    }
    return std::pair(testing::internal::GetCapturedStderr(), what);
  };
  std::string lengthy = "Twenty", words = "Number";
  for (int i = 0; i < 30; ++i) lengthy += fmt::format(" rakes and {} spades", i);
  for (int i = 0; i < 3000; ++i) words += fmt::format(" w{}", i);
  const json too_long{{"text", "The shed holds: " + lengthy + "."},
                      {"question", "What does it hold?"},
                      {"answers", {lengthy}}},
      cut{{"text", words + "."}, {"question", "What are the words?"}, {"answers", {words}}},
      good{
          {"text", "The shed is grey."}, {"question", "What colour is it?"}, {"answers", {"grey"}}};
  const auto [nothing, fine] = made({good});
  EXPECT_EQ(nothing.find("of 1 questions"), std::string::npos) << nothing;
  EXPECT_EQ(fine, "");
  const auto [alone, failed] = made({too_long});
  EXPECT_NE(failed.find("no question has an answer of at most 24 tokens that stands whole in a "
                        "passage; 1 have longer ones"),
            std::string::npos)
      << failed;
  ReadingData all;
  for (const auto& line : {too_long, cut, good}) {
    const auto text = line["text"].get<std::string>();
    all.questions.push_back({"", line["question"], all.texts.size(), 0, line["answers"]});
    all.texts.push_back({"sheds", text, {{0, static_cast<std::int64_t>(text.size())}}});
  }
  const std::shared_ptr<const LanguageModel> borrowed(std::shared_ptr<const LanguageModel>(),
                                                      check::smollm2());
  testing::internal::CaptureStderr();
  const auto material = material_of(all, Reader(borrowed, Prompt::few_shot_quotes(), Chain{}));
  const auto said = testing::internal::GetCapturedStderr();
  EXPECT_EQ(material.cut, 1U);
  EXPECT_EQ(material.too_long, 1U);
  EXPECT_NE(
      said.find("of 3 questions with an answer 1 are left out, as a border between passages cuts "
                "every answer, and 1 are not learned, as the answer is longer than 24 tokens"),
      std::string::npos)
      << said;
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
}

TEST_F(ReadingFiles, SaysWhereAFileIsWrong) {
  const std::string good =
      R"({"text": "The shed is grey.", "question": "What colour?", "answers": ["grey"]})";
  const std::pair<std::string, std::string> cases[] = {
      {"{\"text\": ", "not a JSON object"},
      {"[1]", "not a JSON object"},
      {"\"text\xff\"", "not UTF-8"},
      {R"({"question": "What?", "answers": []})", "\"text\" is missing"},
      {R"({"text": "a", "passage": "b", "question": "What?", "answers": []})", "give one"},
      {R"({"text": "a", "answers": []})", "\"question\" is missing"},
      {R"({"text": 5, "question": "What?", "answers": []})", "\"text\" is no string"},
      {R"({"text": "  ", "question": "What?", "answers": []})", "\"text\" is empty"},
      {R"({"text": "a", "question": "What?"})", "\"answers\" is missing"},
      {R"({"text": "a", "question": "What?", "answers": "a"})", "\"answers\" is no list"},
      {R"({"text": "a", "question": "What?", "answers": [5]})", "no string"},
      {R"({"text": "a", "question": "What?", "answers": [".."]})", "no words"},
      {R"({"text": "a", "question": "What?", "answers": ["b"], "source": []})",
       "\"source\" is no string"},
  };
  for (const auto& [line, message] : cases) {
    const auto file = write("wrong.jsonl", good + "\n\n" + line + "\n");
    try {
      static_cast<void>(own_reading(file, Split::train));
      ADD_FAILURE() << line;
    } catch (const Error& e) {
      const std::string what = e.what();
      EXPECT_EQ(e.code(), Errc::invalid) << what;
      EXPECT_TRUE(what.starts_with(file.string() + ":3: ")) << what;
      EXPECT_NE(what.find(message), std::string::npos) << what;
      EXPECT_EQ(what.find('\n'), std::string::npos) << what;
    }
  }
  // An answer that does not stand in its text cannot be quoted: the line is passed over.
  const auto file = write(
      "strange.jsonl",
      good + "\n" + R"({"text": "The barn is red.", "question": "What?", "answers": ["blue"]})");
  EXPECT_EQ(own_reading(file, Split::train).questions.size() +
                own_reading(file, Split::tuning).questions.size(),
            1U);
  EXPECT_THROW(static_cast<void>(own_reading(write("none.jsonl", "\n"), Split::train)), Error);
  EXPECT_THROW(static_cast<void>(own_reading(folder_ / "absent.jsonl", Split::train)), Error);
  EXPECT_THROW(static_cast<void>(reading_data("squid", folder_, Split::train)), Error);
  EXPECT_THROW(static_cast<void>(reading_data("squad+", folder_, Split::train)), Error);
  EXPECT_THROW(static_cast<void>(reading_data("nq-qed", folder_, Split::train)),
               Error);  // not there
  fs::create_directories(folder_ / "nq-qed");
  write(
      "nq-qed/qed-dev.jsonlines.gz",
      R"({"paragraph_text": "a b", "title_text": "t", "original_nq_answers": [[{"start": 0, "end": 9}]], "annotation": {}})");
  try {
    static_cast<void>(reading_data("nq-qed", folder_, Split::train));
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("qed-dev.jsonlines.gz:1: an answer at 0 to 9"),
              std::string::npos)
        << e.what();
  }
}

TEST_F(ReadingFiles, ItsDigestIsThatOfWhatIsReadAndAsked) {
  MNEME_NEEDS_SMOLLM2();
  const std::string spec = "reading(data=\"own.jsonl\", several=0, absent=0)";
  const auto digest_of = [&](int lines, const std::string& last) {
    std::string text;
    for (int i = 0; i < lines; ++i) {
      text += json{{"text", fmt::format("The shed {} is painted grey{}.", i, i)},
                   {"question", fmt::format("What colour is shed {}?", i)},
                   {"answers", {fmt::format("grey{}", i)}}}
                  .dump() +
              "\n";
    }
    write("own.jsonl", text + last);
    const auto reading = task(spec);
    EXPECT_EQ(reading->digest().size(), 64U);
    return std::pair(reading->size(), reading->digest());
  };
  const auto base = digest_of(9, "");
  EXPECT_EQ(digest_of(9, "\n\n"), base) << "empty lines are nothing";
  // Another question, another answer or another passage in one line; as many examples.
  const auto line = [](const std::string& text, const std::string& question,
                       const std::string& answer) {
    return json{{"text", text}, {"question", question}, {"answers", {answer}}}.dump();
  };
  const std::string text = "The barn is red and old.";
  std::set<std::string> digests{base.second};
  const auto with = digest_of(9, line(text, "What colour is it?", "red"));
  digests.insert(with.second);
  for (const auto& other :
       {line(text, "Which colour is it?", "red"), line(text, "What colour is it?", "old")}) {
    const auto changed = digest_of(9, other);
    EXPECT_EQ(changed.first, with.first);
    digests.insert(changed.second);
  }
  EXPECT_EQ(digests.size(), 4U);
  // What is embedded depends on the embedder; on nothing else that another process would not have.
  EXPECT_EQ(task("reading(absent=0.5)")->digest(), task("reading(absent=0.5)")->digest());
  EXPECT_NE(task("reading(absent=0.5)")->digest(), task("reading(several=0, absent=0)")->digest());
}

/// Bad data are met before the model is asked for.
TEST_F(ReadingFiles, LooksAtItsDataBeforeItWantsTheModel) {
  bool asked = false;
  Task::Setup setup;
  setup.model = [&]() -> const LanguageModel* {
    asked = true;
    throw Error(Errc::io, "asked for");
  };
  const auto refuses = [&](const fs::path& data, const std::string& spec, const std::string& why) {
    setup.data = data;
    try {
      static_cast<void>(registry().make<Task>(spec, setup));
      ADD_FAILURE() << why;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(why), std::string::npos) << e.what();
    }
  };
  refuses(folder_ / "none", "reading()", "dev-v1.1.json.gz: point --data");
  refuses(write("bad.jsonl", "{}\n"), "reading()", "bad.jsonl:1: \"text\" is missing");
  refuses(folder_, "reading(data=\"squid\")", "did you mean 'squad'?");
  refuses(folder_, "reading(embedder=\"nothing\")", "no model 'nothing'");
  EXPECT_FALSE(asked);
  refuses(folder_, "reading(several=0, absent=0, embedder=\"nothing\")", "asked for");
  EXPECT_TRUE(asked);
}

TEST_F(ReadingFiles, AModelWithoutRoomForPassagesIsToldSo) {
  MNEME_NEEDS_SMOLLM2();
  const auto model_of = [](std::int64_t context) {
    auto out = load_language_model("smollm2");
    check::TinyModel tiny(
        fmt::format("decoder(vocabulary={}, model=16, layers=1, context={}, mixer=softmax(heads=2, "
                    "kv_heads=2, head=8), feed_forward=glu(hidden=16))",
                    out->tokenizer->vocabulary_size(), context));
    out->name = "tiny";
    out->params = tiny.params;
    out->model = std::move(tiny.model);
    return out;
  };
  std::string lines;
  for (int i = 0; i < 12; ++i) {
    auto text = fmt::format("Shed {} is grey.", i);
    for (int more = 0; i % 2 == 1 && more < 12; ++more)
      text += " It stands by the river as before.";
    lines +=
        json{{"text", text}, {"question", "What colour?"}, {"answers", {"grey"}}}.dump() + "\n";
  }
  write("own.jsonl", lines);
  const std::string spec = "reading(data=\"own.jsonl\", several=0, absent=0)";
  const auto all = task(spec, model_of(0).get())->size();
  EXPECT_EQ(task(spec, model_of(2048).get())->size(), all);
  try {
    static_cast<void>(task(spec, model_of(540).get()));
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Errc::invalid);
    EXPECT_TRUE(std::string(e.what()).starts_with(
        "tiny: its context of 540 tokens is too short to learn reading"))
        << e.what();
  }
  testing::internal::CaptureStderr();
  const auto some = task(spec, model_of(600).get())->size();
  const auto said = testing::internal::GetCapturedStderr();
  EXPECT_GT(some, 0);
  EXPECT_LT(some, all);
  EXPECT_NE(
      said.find(fmt::format("{} of {} passages that are asked about are left out: the context "
                            "of tiny (600 tokens)",
                            all - some, all)),
      std::string::npos)
      << said;
}

TEST(ReadingData, TokensBecomePlainText) {
  EXPECT_EQ(plain_text("It 's `` old Tam '' ( 1904 -- 1908 ) , Goeppert - Mayer 's .").text,
            "It's \"old Tam\" (1904–1908), Goeppert-Mayer's.");
  EXPECT_EQ(plain_text("").text, "");
  EXPECT_EQ(plain_text("does n't cost $ 5 ; 10 % do").text, "doesn't cost $5; 10% do");
  // Every code point of the tokens points to its byte.
  const std::string tokens = "Röntgen ( Köln ) -- `` x ''";
  const auto plain = plain_text(tokens);
  EXPECT_EQ(plain.text, "Röntgen (Köln)–\"x\"");
  const auto of = [&](std::size_t begin, std::size_t end) {
    return plain.text.substr(plain.bytes[begin], plain.bytes[end] - plain.bytes[begin]);
  };
  EXPECT_EQ(of(0, 7), "Röntgen");
  EXPECT_EQ(of(10, 14), "Köln");
  EXPECT_EQ(of(8, 16), "(Köln)");
  EXPECT_EQ(of(23, 24), "x");
  EXPECT_EQ(plain.bytes.size(), 28U);  // 27 code points and the end
  EXPECT_EQ(plain.bytes.back(), plain.text.size());
}

/// What no two splits may share.
void expect_apart(const ReadingData& a, const ReadingData& b) {
  std::set<std::string> texts, questions;
  for (const auto& text : a.texts) texts.insert(text.text);
  for (const auto& question : a.questions) questions.insert(question.id);
  for (const auto& text : b.texts) EXPECT_FALSE(texts.contains(text.text)) << text.source;
  for (const auto& question : b.questions)
    EXPECT_FALSE(questions.contains(question.id)) << question.id;
}

TEST(ReadingData, SplitsOfTheRealDataAreApart) {
  const auto data = data_folder();
  if (!fs::exists(data / "squad/dev-v1.1.json.gz")) GTEST_SKIP() << "no SQuAD in " << data;
  const auto train = squad_reading(data / "squad", Split::train),
             tuning = squad_reading(data / "squad", Split::tuning),
             test = squad_reading(data / "squad", Split::test);
  EXPECT_EQ(train.texts.size(), 20U);
  EXPECT_EQ(tuning.texts.size(), 4U);
  EXPECT_EQ(test.texts.size(), 12U);
  expect_apart(train, tuning);
  expect_apart(train, test);
  expect_apart(tuning, test);
  const auto test_titles = squad_test_titles();
  for (const auto* part : {&train, &tuning}) {
    std::int64_t unanswerable = 0;
    for (const auto& text : part->texts)
      EXPECT_EQ(std::count(test_titles.begin(), test_titles.end(), text.source), 0) << text.source;
    for (const auto& question : part->questions) {
      unanswerable += question.answers.empty() ? 1 : 0;
      const auto& text = part->texts.at(question.of_text);
      const auto [begin, end] = text.paragraphs.at(question.paragraph);
      const auto paragraph =
          text.text.substr(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
      for (const auto& answer : question.answers)
        EXPECT_NE(paragraph.find(answer), std::string::npos) << question.id;
    }
    EXPECT_GT(unanswerable, 100);
  }
}

TEST(ReadingData, RealQueriesHaveTheirAnswersInPlainParagraphs) {
  const auto data = data_folder();
  if (!fs::exists(data / "nq-qed/qed-dev.jsonlines.gz")) GTEST_SKIP() << "no QED in " << data;
  const auto train = nq_qed_reading(data / "nq-qed", Split::train),
             tuning = nq_qed_reading(data / "nq-qed", Split::tuning),
             test = nq_qed_reading(data / "nq-qed", Split::test);
  expect_apart(train, tuning);
  expect_apart(train, test);
  expect_apart(tuning, test);
  EXPECT_GT(train.questions.size(), 650U);
  EXPECT_GT(tuning.questions.size(), 150U);
  EXPECT_GT(test.questions.size(), 280U);
  for (const auto& question : train.questions) {
    for (const auto& answer : question.answers) {
      EXPECT_NE(train.texts.at(question.of_text).text.find(answer), std::string::npos) << answer;
    }
  }
}

}  // namespace
}  // namespace mneme::tasks
