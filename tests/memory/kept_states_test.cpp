// Memories that keep some entries of their spans: what is stored, how it is asked, how states give way to the budget.
#include "mneme/core/error.h"
#include "mneme/memory/memory.h"
#include "mneme/memory/reader.h"
#include "mneme/memory/span_states.h"

#include "tests/memory/memory_fixture.h"
#include "tests/smollm2.h"
#include "tests/tensor_check.h"
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <memory>
#include <string>
#include <vector>

namespace mneme {
namespace {

std::shared_ptr<MemoryModels> models() {
  static const auto models = std::make_shared<MemoryModels>("", "");
  return models;
}

MemoryOptions creating(const std::string& kv, const std::string& consolidate = "") {
  MemoryOptions options;
  options.access = MemoryFile::Access::create;
  options.kv = kv;
  options.consolidate = consolidate;
  return options;
}

/// A text of several spans, each about something of its own.
std::string harbours() {
  std::string out;
  for (int i = 0; i < 12; ++i) {
    out += fmt::format(
        "The harbour of Tarrow {0} was dug by {1} convicts in the winter of {2}. It silted up "
        "within "
        "thirty years, and today only fishing boats of shallow draught can enter it at high tide. "
        "The keeper of its light was called Ada Kell {0}; she kept bees and wrote letters.\n\n",
        i, 100 + 7 * i, 1811 + i);
  }
  return out;
}

std::unique_ptr<Memory> read(const check::Folder& folder, const std::string& kv,
                             ContextMode context = ContextMode::span) {
  auto memory = Memory::open(folder / "m.mneme", models(), creating(kv));
  ReadOptions eager;
  eager.eager = true;
  eager.context = context;
  memory->read({document_from_text("harbours", harbours())}, eager);
  return memory;
}

std::vector<RepInfo> states_of(Memory& memory) {
  std::vector<RepInfo> out;
  memory.file().for_each_passage([&](const Span& span) {
    for (auto& rep : memory.file().reps(span.id)) {
      if (rep.key.kind == RepKind::kv) out.push_back(std::move(rep));
    }
  });
  return out;
}

TEST(KeptStates, HalfTheEntriesTakeHalfTheBytesAndAreReadBack) {
  MNEME_NEEDS_SMOLLM2();
  const check::Folder whole_folder, half_folder;
  auto whole = read(whole_folder, "quantize(bits=8)");
  auto half = read(half_folder, "snapkv | keep(ratio=0.5, sinks=2, recent=8) | quantize(bits=8)");
  const auto of_whole = whole->file().usage().state_bytes,
             of_half = half->file().usage().state_bytes;
  EXPECT_GT(of_half, of_whole * 49 / 100);
  EXPECT_LT(of_half, of_whole * 54 / 100);
  for (const auto& rep : states_of(*half)) EXPECT_EQ(rep.key.codec, "kept-q8");
  EXPECT_TRUE(half->verify(8).ok()) << "what is kept is what the text gives";
  const auto first = half->ask("In which winter was the harbour of Tarrow 4 dug?", {});
  EXPECT_EQ(first.document_tokens_evaluated, 0);
  EXPECT_EQ(first.citations.empty(), first.answer == "not found");
  // Asked again from another process's view of the file: the same.
  half.reset();
  auto again = Memory::open(half_folder / "m.mneme", models(), {});
  EXPECT_EQ(again->ask("In which winter was the harbour of Tarrow 4 dug?", {}).answer,
            first.answer);
}

TEST(KeptStates, KeepingAllIsKeepingAll) {
  MNEME_NEEDS_SMOLLM2();
  const std::shared_ptr<const LanguageModel> model(std::shared_ptr<const LanguageModel>(),
                                                   check::smollm2(Compute::f32));
  const Reader whole(model, Prompt::few_shot_quotes(), {}),
      kept(model, Prompt::few_shot_quotes(), parse_chain("k_norm | keep(ratio=1)"));
  const auto ids = whole.span_ids(harbours().substr(0, 300));
  const auto n = static_cast<std::int64_t>(ids.size());
  const auto a = whole.decode(whole.compute({&ids, 1}).front(), n, whole.codec()),
             b = kept.decode(kept.compute({&ids, 1}).front(), n, kept.codec());
  EXPECT_EQ(kept.codec(), "kept-" + whole.codec());
  for (std::size_t layer = 0; layer < a.layers.size(); ++layer) {
    EXPECT_TRUE(check::close(b.layers[layer].keys, a.layers[layer].keys, 0)) << layer;
    EXPECT_TRUE(check::close(b.layers[layer].values, a.layers[layer].values, 0)) << layer;
    for (const auto& places : b.layers[layer].places)
      EXPECT_EQ(static_cast<std::int64_t>(places.size()), n);
  }
}

TEST(KeptStates, TheWholePrefixStays) {
  MNEME_NEEDS_SMOLLM2();
  const std::shared_ptr<const LanguageModel> model(std::shared_ptr<const LanguageModel>(),
                                                   check::smollm2(Compute::f32));
  // By what came with the span alone: 16 entries of it, wherever the prefix would rank.
  const Reader reader(model, Prompt::few_shot_quotes(),
                      parse_chain("k_norm | keep(entries=16, sinks=1, recent=2)"));
  const auto ids = reader.span_ids(harbours().substr(0, 600));
  const auto n = static_cast<std::int64_t>(ids.size());
  ASSERT_GT(n, 60);
  const auto state = reader.decode(reader.compute({&ids, 1}).front(), n, reader.codec());
  for (const auto& layer : state.layers) {
    for (const auto& places : layer.places) {
      ASSERT_EQ(places.size(), 16);
      EXPECT_EQ(places.front(), 0);
      EXPECT_EQ(places.back(), n - 1);
    }
  }
  auto row = reader.prefix();
  reader.place(row, state);
  EXPECT_EQ(row.positions[0], reader.prefix_tokens() + n) << "the question stands where it would";
  EXPECT_NEAR(kv_usage(row).kept, static_cast<double>(reader.prefix_tokens()) + 16, 1e-6);
}

TEST(KeptStates, AStreamCutsWhatItStoresAndReadsOnFromAll) {
  MNEME_NEEDS_SMOLLM2();
  const std::shared_ptr<const LanguageModel> model(std::shared_ptr<const LanguageModel>(),
                                                   check::smollm2(Compute::f32));
  const Reader whole(model, Prompt::few_shot_quotes(), {}),
      kept(model, Prompt::few_shot_quotes(),
           parse_chain("snapkv(window=8) | keep(ratio=0.25, sinks=1, recent=2)"));
  Reader::Stream of_whole(whole, 256), of_kept(kept, 256);
  for (int i = 0; i < 3; ++i) {
    const auto ids = whole.span_ids(harbours().substr(static_cast<std::size_t>(300 * i), 300));
    const auto n = static_cast<std::int64_t>(ids.size());
    const auto a = whole.decode(of_whole.next(ids), n, whole.codec()),
               b = kept.decode(of_kept.next(ids), n, kept.codec());
    for (std::size_t layer = 0; layer < a.layers.size(); layer += 7) {
      for (std::int64_t h = 0; h < b.layers[layer].keys.size(0); ++h) {
        const auto& places = b.layers[layer].places[static_cast<std::size_t>(h)];
        EXPECT_EQ(static_cast<std::int64_t>(places.size()), (n + 3) / 4);
        const auto index = at::tensor(places, at::kLong);
        EXPECT_TRUE(check::close(b.layers[layer].keys[h].narrow(0, 0, index.size(0)),
                                 a.layers[layer].keys[h].index_select(0, index), 1e-2))
            << "span " << i << ", layer " << layer;
      }
    }
  }
}

TEST(KeptStates, SpansAreReadASecondTimeWhereTheSpecWantsIt) {
  MNEME_NEEDS_SMOLLM2();
  const std::shared_ptr<const LanguageModel> model(std::shared_ptr<const LanguageModel>(),
                                                   check::smollm2(Compute::f32));
  const Reader reader(model, Prompt::few_shot_quotes(),
                      parse_chain("kvzip | keep(ratio=0.5, sinks=1, recent=2, when=end)"));
  std::vector<std::vector<std::int32_t>> ids{reader.span_ids(harbours().substr(0, 200)),
                                             reader.span_ids(harbours().substr(200, 260))};
  const auto both = reader.compute(ids);
  // Spans of a batch know nothing of each other.
  EXPECT_EQ(reader.compute({&ids[1], 1}).front(), both[1]);
  const auto n = static_cast<std::int64_t>(ids[0].size());
  const auto state = reader.decode(both[0], n, reader.codec());
  for (const auto& layer : state.layers) {
    for (const auto& places : layer.places)
      EXPECT_EQ(static_cast<std::int64_t>(places.size()), (n + 1) / 2);
  }
  // In a stream too, by what the span looks at of itself.
  Reader::Stream stream(reader, 64);
  for (const auto& span : ids) {
    const auto tokens = static_cast<std::int64_t>(span.size());
    const auto streamed = reader.decode(stream.next(span), tokens, reader.codec());
    EXPECT_EQ(static_cast<std::int64_t>(streamed.layers[3].places[1].size()), (tokens + 1) / 2);
  }
}

TEST(KeptStates, StatesGiveWayStepByStep) {
  MNEME_NEEDS_SMOLLM2();
  const check::Folder folder;
  auto memory =
      Memory::open(folder / "m.mneme", models(),
                   creating("quantize(bits=8)",
                            "quantize(bits=4); keydiff | keep(ratio=0.5, sinks=2, recent=4)"));
  EXPECT_EQ(memory->consolidate(),
            "quantize(bits=4); keydiff | keep(ratio=0.5, sinks=2, recent=4)");
  ReadOptions eager;
  eager.eager = true;
  std::string text;
  for (int i = 0; i < 6; ++i) text += harbours();
  memory->file().set_budget(16 << 20);
  memory->read({document_from_text("harbours", text)}, eager);
  std::int64_t kept = 0;
  for (const auto& rep : states_of(*memory)) {
    if (rep.key.codec != "kept-q4") continue;
    ++kept;
    const auto held = memory->file().get(rep.key);
    ASSERT_TRUE(held);
    const auto state = memory->reader().decode(held->blob, held->n_vec, held->key.codec);
    for (const auto& places : state.layers.front().places)
      EXPECT_EQ(static_cast<std::int64_t>(places.size()), (held->n_vec + 1) / 2);
  }
  EXPECT_GT(kept, 0) << "the second step was taken";
  EXPECT_LE(memory->file().usage().file_bytes, 17 << 20);
  EXPECT_TRUE(memory->verify(72).ok()) << "what is left is what the text gives";
  EXPECT_FALSE(memory->ask("Who kept the light of Tarrow 3?", {}).answer.empty());
}

TEST(KeptStates, AStepThatMakesAStateNoSmallerIsPassedOver) {
  MNEME_NEEDS_SMOLLM2();
  const check::Folder folder;
  auto memory =
      Memory::open(folder / "m.mneme", models(),
                   creating("quantize(bits=4)",
                            "quantize(bits=4); keydiff | keep(ratio=0.5, sinks=2, recent=4)"));
  ReadOptions eager;
  eager.eager = true;
  std::string text;
  for (int i = 0; i < 6; ++i) text += harbours();
  memory->read({document_from_text("harbours", text)}, eager);
  const auto before = states_of(*memory).size();
  // Lowered by less than a state takes, until one has to give way: its half does.
  std::int64_t kept = 0;
  auto after = before;
  for (auto budget = memory->file().usage().state_page_bytes * 5 / 4; kept == 0 && after == before;
       budget -= 200 << 10) {
    memory->set_budget(budget);
    const auto states = states_of(*memory);
    after = states.size();
    for (const auto& rep : states) kept += rep.key.codec == "kept-q4" ? 1 : 0;
  }
  EXPECT_GT(kept, 0);
  EXPECT_EQ(after, before) << "it was made smaller before it was given up";
}

TEST(KeptStates, AnotherMemorysPartsAreNotImported) {
  MNEME_NEEDS_SMOLLM2();
  const check::Folder folder, other;
  auto whole = Memory::open(folder / "m.mneme", models(), creating("quantize(bits=8)"));
  read(other, "k_norm | keep(ratio=0.25) | quantize(bits=8)");
  const auto report = whole->file().import_from(other / "m.mneme", {});
  EXPECT_GT(report.reps_left_out, 0);
  EXPECT_TRUE(states_of(*whole).empty());
  EXPECT_GT(
      whole->ask("In which winter was the harbour of Tarrow 4 dug?", {}).document_tokens_evaluated,
      0)
      << "read anew, whole";
  for (const auto& rep : states_of(*whole)) EXPECT_EQ(rep.key.codec, "q8");
}

TEST(KeptStates, WritingOnKeepsWhatTheMemoryKeeps) {
  MNEME_NEEDS_SMOLLM2();
  const check::Folder folder;
  auto memory = Memory::open(folder / "m.mneme", models(),
                             creating("k_norm | keep(ratio=0.5, sinks=2, recent=4) | quantize"));
  memory->read({document_from_text("harbours", harbours())}, {});
  const auto first = memory->continue_text(8, {}, 1, "", {});
  EXPECT_GT(first.tokens_placed, 0);
  for (const auto& rep : states_of(*memory)) {
    const auto held = memory->file().get(rep.key);
    ASSERT_TRUE(held);
    const auto state = memory->reader().decode(held->blob, held->n_vec, held->key.codec);
    EXPECT_EQ(static_cast<std::int64_t>(state.layers[0].places[0].size()), (held->n_vec + 1) / 2);
  }
  const auto again = memory->continue_text(8, {}, 1, "", {});
  EXPECT_EQ(again.text, first.text);
  EXPECT_LT(again.document_tokens_evaluated, first.document_tokens_evaluated);
}

TEST(KeptStates, WritingOnUnderASpecReadsTheSourceAndStoresNothing) {
  MNEME_NEEDS_SMOLLM2();
  const check::Folder folder;
  auto memory = Memory::open(folder / "m.mneme", models(), creating(""));
  std::string text;
  for (int i = 0; i < 14; ++i) text += harbours();
  memory->read({document_from_text("harbours", text)}, {});
  const auto tokens = memory->documents().front().tokens;
  ASSERT_GT(tokens, 9'000) << "more than the context takes";
  const auto all = memory->continue_text(4, {}, 1, "", {}, "window(sinks=4, size=60) | renumber");
  EXPECT_EQ(all.tokens_left_out, 0);
  EXPECT_GT(all.document_tokens_evaluated, tokens * 9 / 10);
  EXPECT_EQ(all.generated_tokens, 4);
  const auto end = memory->continue_text(4, {}, 1, "", {}, "window(sinks=4, size=60)");
  EXPECT_GT(end.tokens_left_out, 0) << "positions go on: only so much fits the context";
  EXPECT_TRUE(states_of(*memory).empty());
}

TEST(KeptStates, SpecsThatASpanCannotFollowAreRefusedBeforeThereIsAFile) {
  const check::Folder folder;
  const auto refused = [&](const std::string& kv, const std::string& consolidate,
                           const std::string& why) {
    check::expect_error(Errc::usage, why, [&] {
      (void)Memory::open(folder / "m.mneme", models(), creating(kv, consolidate));
    });
    EXPECT_TRUE(folder.files().empty());
  };
  refused("window(size=64) | renumber", "", "moves, merges");
  refused("h2o | keep(ratio=0.5) | cam", "", "moves, merges");
  refused("", "qfilter | keep(ratio=0.5)", "looks at more than keys and values");
  refused("quest", "", "reads only some");
  refused("infllm", "", "reads only some");
  refused("", "snapkv | keep(ratio=0.5)", "looks at more than keys and values");
  refused("", "k_norm", "serves a stage that drops entries");
}

TEST(KeptStates, HowStatesAreMadeSmallerIsSaidOnce) {
  const check::Folder folder;
  Memory::open(folder / "m.mneme", models(), creating("", "quantize(bits=4)"));
  MemoryOptions other;
  other.consolidate = "k_norm | keep(ratio=0.5)";
  check::expect_error(Errc::usage, "another --consolidate wants a new",
                      [&] { (void)Memory::open(folder / "m.mneme", models(), other); });
}

TEST(KeptStates, DamagedStatesAreNoticed) {
  MNEME_NEEDS_SMOLLM2();
  const std::shared_ptr<const LanguageModel> model(std::shared_ptr<const LanguageModel>(),
                                                   check::smollm2(Compute::f32));
  const Reader reader(model, Prompt::few_shot_quotes(),
                      parse_chain("k_norm | keep(ratio=0.5, sinks=1, recent=2)"));
  const auto ids = reader.span_ids(harbours().substr(0, 200));
  const auto n = static_cast<std::int64_t>(ids.size());
  const auto bytes = reader.compute({&ids, 1}).front();
  check::expect_error(Errc::corrupt, "too early", [&] {
    (void)reader.decode(bytes.substr(0, bytes.size() - 1), n, reader.codec());
  });
  check::expect_error(Errc::corrupt, "more than it says",
                      [&] { (void)reader.decode(bytes + "x", n, reader.codec()); });
  auto more = bytes;  // a bit behind the last token
  more[static_cast<std::size_t>((n + 7) / 8 - 1)] = static_cast<char>(0xff);
  ASSERT_NE(n % 8, 0) << "or there is no such bit: take a text of another length";
  check::expect_error(Errc::corrupt, "more tokens",
                      [&] { (void)reader.decode(more, n, reader.codec()); });
}

}  // namespace
}  // namespace mneme
