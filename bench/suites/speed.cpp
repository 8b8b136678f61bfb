// speed: how fast this machine reads, decodes, embeds and answers, beside what its memory and its products allow at most,
// and beside other engines that run the same weights on the same text in turns with ours.
//
//   prefill      a prompt of `depth` tokens, to the logits of its last one
//   decode       tokens one by one behind `depth` others
//   first-token  from the stored states of spans of about `depth` tokens to the first token of an answer
//   restore      those states from their bytes to their places
//   embedding    passages of mixed length at once, and single sentences one by one
//   reading      a text of `depth` tokens into a memory file, with embeddings, states and index
//
// The share of the limit is the time that the work would take at the measured bandwidth or product rate, whichever takes
// longer, as part of the time that it took; the bandwidth is that of reading as many bytes as a step does, where it is the
// limit the best of passes in turns with the rounds. Bytes are the weights once a step and the keys and values that it looks at;
// FLOPs are those of all products and of attention, 4 x heads x width a context token and layer. Neither is counted where a
// plan chooses at each step what it reads of all that it holds (quest, loki, infllm and their like): there is no share then.
// What decoding does outside kernels (bookkeeping of tensors, pages and calls, and a kernel's own checks and planning) is
// given as part of its time.
#include "mneme/core/error.h"
#include "mneme/core/progress.h"
#include "mneme/kernels/level.h"
#include "mneme/kernels/timing.h"
#include "mneme/kv/plan.h"
#include "mneme/memory/memory.h"
#include "mneme/models/locate.h"
#include "mneme/models/reconstruct.h"
#include "mneme/text/span.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include "bench/list.h"
#include "bench/machine/limits.h"
#include "bench/machine/other_work.h"
#include "bench/peers/peer.h"
#include "bench/scratch_folder.h"
#include "bench/speed/sample_text.h"
#include "bench/speed/turns.h"
#include "bench/suite.h"
#include "bench/writable.h"
#include <algorithm>
#include <cmath>
#include <fmt/format.h>
#include <fstream>
#include <iterator>
#include <map>
#include <numeric>
#include <optional>
#include <span>

namespace mneme::suites::speed {

using namespace mneme::bench;
using nlohmann::json;

namespace {

constexpr std::array<std::string_view, 6> kMeasures = {"prefill", "decode",    "first-token",
                                                       "restore", "embedding", "reading"};
constexpr std::string_view kLlama = "llama.cpp", kSentenceTransformers = "sentence-transformers";
// Prompt tokens of one pass, as generation and reading feed them.
constexpr std::int64_t kChunk = 512;
// Passages and sentences that are embedded in a round.
constexpr std::size_t kPassages = 128, kSentences = 32;
// Where something else runs on more processors, times are worth nothing.
constexpr double kBusy = 0.5;
constexpr std::string_view kQuestion = "What did the captain say about the harbour?";

/// One thing that is measured: our side, those of peers, and what it takes at least.
struct Case {
  std::string measure;
  std::int64_t depth = 0, batch = 1;
  std::string kv = {};  ///< how keys and values are kept; empty where there are none
  double amount = 0;    ///< of `unit`, in one run
  std::string unit = "tokens";
  std::function<double()> ours = {};  ///< runs once; the seconds that it took
  std::vector<std::pair<std::string, std::function<double()>>> peers = {};
  double bytes = 0, flops = 0;             ///< of one run; 0: not counted
  double passes = 1;                       ///< over memory in a run: steps, chunks of a prompt
  std::vector<std::int64_t> lengths = {};  ///< of each sequence, where they differ
  std::string refusal = {};                ///< why it is not measured
  bool by_kernels =
      false;  ///< all that takes long is a kernel of ours, so that the rest is overhead
};

json row_of(const Timing& timing, double amount) {
  return {{"median_s", timing.median},
          {"least_s", timing.least},
          {"most_s", timing.most},
          {"rounds_s", timing.rounds},
          {"per_s", amount / timing.median}};
}

std::string file_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::string out{std::istreambuf_iterator<char>(in), {}};
  if (!in) throw Error(Errc::not_found, fmt::format("{}: cannot be read", path));
  if (out.empty())
    throw Error(Errc::usage, fmt::format("--text: {} is empty: give one with text", path));
  return out;
}

}  // namespace

class Speed final : public Suite {
 public:
  struct Options {
    std::string measures = "all", depth = "128,512,2048", batch = "1", kv, against, text, rows;
    std::int64_t rounds = 5, tokens = 64;
    std::string python = Peer::default_python().string();
    bool ragged = false, noisy = false;
  };
  static void describe(Describe& d, Options& o) {
    d("measures", o.measures, "what is measured, separated by commas; all: everything");
    d("depth", o.depth, "tokens of the context, one number or several");
    d("batch", o.batch, "sequences that are run together in prefill and decode");
    d("ragged", o.ragged,
      "decode batches also with lengths spread evenly from half of a depth to one and a half");
    d("kv", o.kv, "how decode keeps keys and values, specs separated by ';'; empty: as computed");
    d("tokens", o.tokens, at_least(1), "tokens that are decoded in a round");
    d("rounds", o.rounds, at_least(1), "rounds of which the median counts");
    d("against", o.against,
      "engines that take turns with ours: llama.cpp, sentence-transformers or both");
    d("text", o.text, "file with the text; empty: made up, the same every time");
    d("python", o.python, "interpreter that has the other engines' packages");
    d("rows", o.rows, "file that gets a line of JSON a measurement");
    d("noisy", o.noisy, "measure although the machine is busy; every row then says so");
  }
  explicit Speed(const Options& o) : o_(o) {}

  [[nodiscard]] std::vector<std::string> examples() const override {
    return {"mneme bench speed --measures prefill,decode --depth 128,2048 --against llama.cpp",
            "mneme bench speed --measures decode --depth 512 --batch 1,8 --kv 'store(f16); "
            "store(q8); store(q4)' --rows rows.jsonl"};
  }

  SuiteReport run(const SuiteSetup& setup) override {
    check_options();
    check_writable(o_.rows);
    if (!o_.noisy) {
      if (const double others = processors_of_others(); others > kBusy)
        throw Error(Errc::busy, fmt::format("the machine is busy (something else runs on {:.1f} "
                                            "processors): wait, or give --noisy",
                                            others));
    }
    const c10::InferenceMode inference;
    between_ = setup.between;
    models_ = std::make_shared<MemoryModels>(setup.language_model, setup.embedder, setup.adapter);
    base_ = models_->base_language_model("");
    embedder_ = models_->embedder("");
    check_sizes();
    prepare_text();
    start_peers();
    bandwidth_ = read_bandwidth(step_bytes());
    products_ = product_limits(matrices());

    json rows = json::array();
    const auto cases = this->cases();
    Progress progress("measuring", static_cast<std::int64_t>(cases.size()), "measurements");
    std::ofstream out;
    if (!o_.rows.empty()) out.open(o_.rows, std::ios::app);
    for (const auto& make : cases) {
      rows.push_back(measure(make()));
      if (!o_.rows.empty() && !(out << rows.back().dump() << std::endl))
        throw Error(Errc::io, fmt::format("{}: cannot be written", o_.rows));
      progress.advance(1);
    }
    progress.finish();
    return report(std::move(rows));
  }

 private:
  // ---- what is measured ----

  void check_options() {
    depths_ = listed_numbers("depth", o_.depth, 1);
    batches_ = listed_numbers("batch", o_.batch, 1);
    if (o_.measures == "all") {
      measures_.assign(kMeasures.begin(), kMeasures.end());
    } else {
      measures_ = listed(o_.measures);
    }
    if (measures_.empty())
      throw Error(Errc::usage, fmt::format("--measures: names none; there are {}, or all",
                                           fmt::join(kMeasures, ", ")));
    for (const auto& name : measures_) {
      if (std::find(kMeasures.begin(), kMeasures.end(), name) == kMeasures.end())
        throw Error(Errc::usage, fmt::format("--measures: no '{}'; there are {}", name,
                                             fmt::join(kMeasures, ", ")));
    }
    for (const auto& name : listed(o_.against)) {
      if (name != kLlama && name != kSentenceTransformers)
        throw Error(Errc::usage, fmt::format("--against: no '{}'; there are {}, {}", name, kLlama,
                                             kSentenceTransformers));
      against_.push_back(name);
    }
    if (o_.kv.empty()) {
      plans_.emplace_back("as computed", nullptr);
    } else {
      for (const auto& chain : parse_chains(o_.kv))
        plans_.emplace_back(print(chain), std::make_shared<KvPlan>(chain));
    }
  }

  [[nodiscard]] bool beside(std::string_view peer) const {
    return std::find(against_.begin(), against_.end(), peer) != against_.end();
  }

  /// Why a context of so many tokens cannot be measured; empty where it can.
  [[nodiscard]] std::string refusal(std::int64_t depth) const {
    const auto context = base_->model->shape().context;
    if (context <= 0 || depth + o_.tokens <= context) return {};
    return fmt::format("{} tokens and {} decoded ones do not fit the {} of {}", depth, o_.tokens,
                       context, base_->name);
  }

  [[nodiscard]] bool measures(std::string_view name) const {
    return std::find(measures_.begin(), measures_.end(), name) != measures_.end();
  }

  /// Bytes of keys and values that a sequence holds behind so many tokens, at the least: of a plan that drops or moves
  /// entries only one chunk is sure.
  [[nodiscard]] double held_bytes(const KvPlan* plan, std::int64_t tokens) const {
    const auto state = base_->model->start(1);
    if (plan != nullptr && (!plan->evict().empty() || plan->retrieve() != nullptr))
      tokens = std::min(tokens, kChunk);
    double bytes = 0;
    for (const auto* store : kv_stores(state)) {
      const auto& s = store->shape();
      bytes += plan != nullptr && plan->codec() != nullptr
                   ? static_cast<double>(plan->codec()->bytes(s.heads, tokens, s.key, s.value))
                   : 2.0 * static_cast<double>(s.heads * (s.key + s.value) * tokens);
    }
    return bytes;
  }

  /// Refuses what can only fail later: contexts of which none can be measured, and more than memory holds.
  void check_sizes() const {
    const bool other = measures("embedding") || measures("reading");
    const auto fits = [&](std::int64_t depth) { return refusal(depth).empty(); };
    if (!other && std::none_of(depths_.begin(), depths_.end(), fits))
      throw Error(Errc::usage, fmt::format("--depth: {}", refusal(depths_.front())));
    const auto available = static_cast<double>(available_memory());
    const auto check = [&](const KvPlan* plan) {
      for (const auto depth : depths_) {
        if (!fits(depth)) continue;
        const auto batch = *std::max_element(batches_.begin(), batches_.end());
        const auto bytes = static_cast<double>(batch) * held_bytes(plan, depth);
        if (bytes > available)
          throw Error(Errc::usage,
                      fmt::format("--batch: {} sequences of {} tokens take {:.1f} GB of keys and "
                                  "values, and {:.1f} GB of memory are free",
                                  batch, depth, bytes * 1e-9, available * 1e-9));
      }
    };
    if (measures("prefill")) check(nullptr);
    if (measures("decode")) {
      for (const auto& plan : plans_) check(plan.second.get());
    }
  }

  /// The matrices that every layer of the language model has.
  [[nodiscard]] std::vector<MatrixShape> matrices() const {
    std::map<MatrixShape, std::int64_t> counts;
    for (const auto& name : base_->params.names()) {
      const auto sizes = base_->params.find(name)->sizes();
      if (sizes.size() == 2) ++counts[{sizes[0], sizes[1]}];
    }
    std::vector<MatrixShape> out;
    for (const auto& [shape, count] : counts) {
      if (count >= base_->model->shape().layers) out.push_back(shape);
    }
    return out;
  }

  /// Bytes that the model reads for a token without context.
  [[nodiscard]] std::int64_t step_bytes() const {
    Cost cost;
    auto state = base_->model->start(1);
    feed(state, 1, 0, 1, &cost);
    return static_cast<std::int64_t>(cost.bytes);
  }

  /// The most tokens of a context, with those that are decoded behind it; what is refused does not count.
  [[nodiscard]] std::int64_t most_tokens(bool reading_too) const {
    std::int64_t out = o_.tokens;
    for (const auto depth : depths_) {
      if (refusal(depth).empty() || (reading_too && measures("reading")))
        out = std::max(out, depth + o_.tokens);
      const auto longest = depth / 2 + depth;
      if (o_.ragged && refusal(longest).empty()) out = std::max(out, longest + o_.tokens);
    }
    return out;
  }

  void prepare_text() {
    const auto deepest = most_tokens(true);
    text_ = o_.text.empty() ? sample_text(8 * deepest + (1 << 16)) : file_text(o_.text);
    ids_ = base_->tokenizer->encode(text_);
    if (static_cast<std::int64_t>(ids_.size()) < deepest)
      throw Error(Errc::usage, fmt::format("--text: {} has {} tokens, {} are wanted", o_.text,
                                           ids_.size(), deepest));
    std::int64_t tokens = 0;
    for (const auto& span : cut_spans(text_, Media::text, [&](std::string_view piece) {
           return static_cast<std::int64_t>(base_->tokenizer->encode(piece).size());
         })) {
      if (span.kind != "passage") continue;
      passages_.push_back(span);
      tokens += span.tokens;
      if (tokens > deepest && passages_.size() >= kPassages) break;
    }
    for (const auto& span : passages_) {
      if (embedded_[0].size() == kPassages) break;
      embedded_[0].emplace_back(text_of(span));
    }
    for (const auto& passage : embedded_[0]) {
      if (embedded_[1].size() == kSentences) break;
      const auto end = std::min(passage.find_first_of(".?!"), passage.size());
      embedded_[1].push_back(passage.substr(0, std::min<std::size_t>(end + 1, 120)));
    }
  }

  [[nodiscard]] std::string_view text_of(const Span& span) const {
    return std::string_view(text_).substr(static_cast<std::size_t>(span.begin),
                                          static_cast<std::size_t>(span.end - span.begin));
  }

  void start_peers() {
    const auto threads = std::to_string(at::get_num_threads());
    if (beside(kLlama)) {
      const auto path = scratch_.path() / "ids.txt";
      std::ofstream(path) << fmt::format("{}", fmt::join(ids_, " "));
      llama_.emplace(
          o_.python, "llama_cpp_peer.py",
          std::vector<std::string>{base_->path, std::to_string(most_tokens(false) + kChunk),
                                   threads, path.string()},
          between_);
    }
    if (beside(kSentenceTransformers)) {
      const auto path = scratch_.path() / "texts.json";
      std::ofstream(path) << json(embedded_).dump();
      sentence_transformers_.emplace(
          o_.python, "sentence_transformers_peer.py",
          std::vector<std::string>{embedder_->path(), threads, path.string()}, between_);
    }
  }

  /// A case is made when its turn comes: what it holds is large.
  [[nodiscard]] std::vector<std::function<Case()>> cases() {
    std::vector<std::function<Case()>> out;
    for (const auto& name : measures_) {
      if (name == "embedding") {
        out.push_back([this] { return embedding(true); });
        out.push_back([this] { return embedding(false); });
        continue;
      }
      for (const auto depth : depths_) {
        if (const auto why = refusal(depth); !why.empty() && name != "reading") {
          out.push_back([=] {
            Case refused{name, depth};
            refused.refusal = why;
            return refused;
          });
          continue;
        }
        if (name == "first-token") out.push_back([=, this] { return first_token(depth); });
        if (name == "restore") out.push_back([=, this] { return restore(depth); });
        if (name == "reading") out.push_back([=, this] { return reading(depth); });
        for (const auto batch : batches_) {
          if (name == "prefill") out.push_back([=, this] { return prefill(depth, batch); });
          if (name != "decode") continue;
          for (const auto& plan : plans_) {
            out.push_back([=, this] { return decode(depth, batch, plan.first, plan.second); });
            if (o_.ragged && batch > 1)
              out.push_back([=, this] { return ragged(depth, batch, plan.first, plan.second); });
          }
        }
      }
    }
    return out;
  }

  /// Feeds tokens [from, from + n) of the text to every row, with the logits of the last one.
  void feed(State& state, std::int64_t batch, std::int64_t from, std::int64_t n,
            Cost* cost = nullptr) const {
    for (std::int64_t at = from; at < from + n; at += kChunk) {
      const auto T = std::min(kChunk, from + n - at);
      Batch some;
      some.ids = at::empty({batch, T}, at::kLong);
      for (std::int64_t b = 0; b < batch; ++b)
        std::copy_n(ids_.begin() + at, T, some.ids[b].mutable_data_ptr<std::int64_t>());
      some.logits_at = at + T == from + n ? LogitsAt::last : LogitsAt::none;
      some.cost = cost;
      static_cast<void>(base_->model->forward(some, state));
    }
  }

  /// A prompt of so many tokens in every row, ended: what the plan drops then is dropped.
  [[nodiscard]] State read(std::int64_t batch, std::int64_t depth,
                           const std::shared_ptr<const KvPlan>& plan) const {
    auto out = base_->model->start(batch);
    if (plan) use_plan(out, plan);
    feed(out, batch, 0, depth);
    if (plan)
      finish_prompt(*base_, out, std::span(ids_).first(static_cast<std::size_t>(depth)), between_);
    return out;
  }

  /// The same with prompts of these lengths, read one after another.
  [[nodiscard]] State read_apart(const std::vector<std::int64_t>& lengths,
                                 const std::shared_ptr<const KvPlan>& plan) const {
    std::vector<State> rows;
    std::vector<const State*> all;
    for (const auto length : lengths) rows.push_back(read(1, length, plan));
    for (const auto& row : rows) all.push_back(&row);
    return State::concat(all);
  }

  Case prefill(std::int64_t depth, std::int64_t batch) {
    Case out{"prefill", depth, batch};
    out.amount = static_cast<double>(depth * batch);
    Cost cost;
    auto counted = base_->model->start(batch);
    feed(counted, batch, 0, depth, &cost);
    out.flops = cost.flops;
    out.bytes = cost.bytes;
    out.passes = std::ceil(static_cast<double>(depth) / static_cast<double>(kChunk));
    out.ours = [=, this] {
      auto state = base_->model->start(batch);
      return seconds([&] { feed(state, batch, 0, depth); });
    };
    if (batch == 1)
      beside_llama(out, [=](int flash) { return fmt::format("prefill {} {}", flash, depth); });
    return out;
  }

  Case decode(std::int64_t depth, std::int64_t batch, const std::string& kv,
              const std::shared_ptr<const KvPlan>& plan) {
    Case out{"decode", depth, batch, kv};
    const std::vector<std::int64_t> lengths(static_cast<std::size_t>(batch), depth);
    // A second pass over the prompt is of one sequence.
    const bool apart = plan && plan->needs().reconstruction && batch > 1;
    count_steps(out, apart ? read_apart(lengths, plan) : read(batch, depth, plan), plan.get(),
                lengths);
    if (batch == 1 && !plan)
      beside_llama(out, [=, this](int flash) {
        return fmt::format("decode {} {} {}", flash, depth, o_.tokens);
      });
    return out;
  }

  /// Lengths of at least two sequences, spread evenly from half of a depth to one and a half, ascending.
  static std::vector<std::int64_t> ragged_lengths(std::int64_t depth, std::int64_t batch) {
    std::vector<std::int64_t> out;
    for (std::int64_t b = 0; b < batch; ++b)
      out.push_back(std::max<std::int64_t>(1, depth / 2 + depth * b / (batch - 1)));
    return out;
  }

  /// Decoding of sequences of different lengths in one forward.
  Case ragged(std::int64_t depth, std::int64_t batch, const std::string& kv,
              const std::shared_ptr<const KvPlan>& plan) {
    Case out{"decode, ragged", depth, batch, kv};
    out.lengths = ragged_lengths(depth, batch);
    out.refusal = refusal(out.lengths.back());
    if (!out.refusal.empty()) return out;
    count_steps(out, read_apart(out.lengths, plan), plan.get(), out.lengths);
    return out;
  }

  /// Makes a case of decoding behind what is held, each row behind so many tokens of the text.
  void count_steps(Case& out, State behind, const KvPlan* plan,
                   const std::vector<std::int64_t>& lengths) const {
    const auto held = std::make_shared<State>(std::move(behind));
    const auto step = [this, lengths](State& state, std::int64_t i, Cost* cost) {
      Batch next;
      next.ids = at::empty({static_cast<std::int64_t>(lengths.size()), 1}, at::kLong);
      for (std::size_t b = 0; b < lengths.size(); ++b)
        next.ids.mutable_data_ptr<std::int64_t>()[b] =
            ids_[static_cast<std::size_t>(lengths[b] + i)];
      next.cost = cost;
      static_cast<void>(base_->model->forward(next, state));
    };
    Cost cost;
    auto counted = held->fork();
    step(counted, 0, &cost);
    const auto steps = static_cast<double>(o_.tokens);
    out.passes = steps;
    out.amount = steps * static_cast<double>(out.batch);
    if (plan == nullptr || (plan->select() == nullptr && plan->retrieve() == nullptr)) {
      out.flops = steps * cost.flops;
      out.bytes = steps * cost.bytes;
    }
    out.by_kernels = true;
    out.ours = [this, held, step] {
      auto state = held->fork();
      return seconds([&] {
        for (std::int64_t i = 0; i < o_.tokens; ++i) step(state, i, nullptr);
      });
    };
  }

  /// Both of llama.cpp's ways with attention: the better one is what we are compared with.
  void beside_llama(Case& out, const std::function<std::string(int flash)>& command) {
    if (!llama_) return;
    for (const int flash : {0, 1}) {
      out.peers.emplace_back(fmt::format("{}{}", kLlama, flash == 1 ? ", flash attention" : ""),
                             [this, line = command(flash)] { return llama_->ask(line); });
    }
  }

  /// The bytes of the states of spans of about `depth` tokens.
  struct Stored {
    std::shared_ptr<Reader> reader;
    std::vector<std::string> bytes;
    std::vector<std::int64_t> tokens;
  };
  Stored stored(std::int64_t depth) {
    ScratchFolder folder;
    MemoryOptions options;
    options.access = MemoryFile::Access::create;
    auto memory = Memory::open(folder.path() / "m.mneme", models_, options);
    Stored out;
    out.reader = std::make_shared<Reader>(models_->language_model(""), memory->prompt(),
                                          parse_chain(memory->kv()));
    std::vector<std::vector<std::int32_t>> ids;
    for (std::int64_t tokens = 0; const auto& span : passages_) {
      if (tokens >= depth) break;
      ids.push_back(out.reader->span_ids(text_of(span)));
      out.tokens.push_back(static_cast<std::int64_t>(ids.back().size()));
      tokens += out.tokens.back();
    }
    out.bytes = out.reader->compute(ids);
    return out;
  }

  static State placed(const Stored& stored) {
    auto state = stored.reader->prefix();
    for (std::size_t i = 0; i < stored.bytes.size(); ++i)
      stored.reader->place(
          state, stored.reader->decode(stored.bytes[i], stored.tokens[i], stored.reader->codec()));
    return state;
  }

  Case restore(std::int64_t depth) {
    const auto held = std::make_shared<Stored>(stored(depth));
    Case out{"restore", depth, 1, held->reader->codec()};
    for (std::size_t i = 0; i < held->bytes.size(); ++i) {
      out.amount += static_cast<double>(held->tokens[i]);
      out.bytes += static_cast<double>(held->bytes[i].size());
    }
    out.ours = [held] { return seconds([&] { static_cast<void>(placed(*held)); }); };
    return out;
  }

  Case first_token(std::int64_t depth) {
    const auto held = std::make_shared<Stored>(stored(depth));
    Case out{"first-token", depth, 1, held->reader->codec()};
    const auto tokens = std::accumulate(held->tokens.begin(), held->tokens.end(), std::int64_t{0});
    const auto asked = static_cast<std::int64_t>(held->reader->question_ids(kQuestion).size());
    out.amount = static_cast<double>(tokens + asked);
    out.ours = [held] {
      std::vector<State> rows;
      const auto placing = seconds([&] { rows.push_back(placed(*held)); });
      return placing + held->reader->answer(std::move(rows), kQuestion, 1).first_token_seconds;
    };
    const auto all = std::min(tokens + asked, static_cast<std::int64_t>(ids_.size()));
    beside_llama(out, [=](int flash) { return fmt::format("prefill {} {}", flash, all); });
    return out;
  }

  Case embedding(bool passages) {
    const auto which = passages ? 0U : 1U;
    Case out{passages ? "embedding, passages" : "embedding, single sentences"};
    auto texts = std::make_shared<std::vector<std::string_view>>(embedded_[which].begin(),
                                                                 embedded_[which].end());
    for (const auto& embedding : embedder_->embed(*texts))
      out.amount += static_cast<double>(std::min(embedding.tokens, embedder_->max_tokens()));
    out.ours = [=, this] {
      return seconds([&] {
        if (passages) {
          static_cast<void>(embedder_->embed(*texts));
        } else {
          for (const auto text : *texts) static_cast<void>(embedder_->embed(text));
        }
      });
    };
    if (sentence_transformers_) {
      out.peers.emplace_back(
          kSentenceTransformers,
          [this, line = fmt::format("{} {}", passages ? "embed" : "each", which)] {
            return sentence_transformers_->ask(line);
          });
    }
    return out;
  }

  Case reading(std::int64_t depth) {
    Case out{"reading", depth};
    std::int64_t end = 0, tokens = 0;
    for (const auto& span : passages_) {
      if (tokens >= depth) break;
      tokens += span.tokens;
      end = span.end;
    }
    out.amount = static_cast<double>(tokens);
    out.ours = [this, text = text_.substr(0, static_cast<std::size_t>(end))] {
      const ScratchFolder folder;
      MemoryOptions options;
      options.access = MemoryFile::Access::create;
      const auto memory = Memory::open(folder.path() / "m.mneme", models_, options);
      memory->reader();  // loading models is not part of reading
      return seconds([&] {
        ReadOptions eager;
        eager.eager = true;
        std::vector<Document> documents;
        documents.push_back(document_from_text("text", text));
        memory->read(std::move(documents), eager);
      });
    };
    if (refusal(depth).empty())
      beside_llama(out, [=](int flash) { return fmt::format("prefill {} {}", flash, tokens); });
    return out;
  }

  // ---- measuring and telling ----

  /// Seconds that a case takes at least where memory is read and products are made at these rates.
  static double least_seconds(const Case& c, double bytes_per_s, double flops_per_s) {
    return std::max(c.bytes / bytes_per_s, c.flops / flops_per_s);
  }

  /// The peers' processes.
  [[nodiscard]] std::vector<int> peers() const {
    std::vector<int> out;
    for (const auto* peer : {&llama_, &sentence_transformers_}) {
      if (peer->has_value()) out.push_back((*peer)->process());
    }
    return out;
  }

  [[nodiscard]] json measure(const Case& c) const {
    json row = {{"measure", c.measure}, {"depth", c.depth}, {"batch", c.batch}, {"kv", c.kv}};
    if (!c.lengths.empty()) row["lengths"] = c.lengths;
    if (o_.noisy) row["noisy"] = true;
    if (!c.refusal.empty()) {
      row["refusal"] = c.refusal;
      return row;
    }
    std::vector<std::function<double()>> sides{c.ours};
    for (const auto& peer : c.peers) sides.push_back(peer.second);
    // What memory limits is told as a share of what memory gave in the same rounds: its speed wanders.
    std::optional<MemoryReading> reading;
    if (c.bytes / bandwidth_.per_s > c.flops / products_.best.per_s) {
      reading.emplace(bandwidth_.way, static_cast<std::int64_t>(c.bytes / c.passes));
      // The first passes wake threads, while those of a peer may still be waiting busily for work.
      sides.emplace_back([&] {
        constexpr int kPasses = 8;
        auto least = reading->pass();
        for (int i = 1; i < kPasses; ++i) least = std::min(least, reading->pass());
        return least;
      });
    }
    const OtherWork others(peers());
    const auto timings = in_turns(sides, o_.rounds, between_);
    row["busy"] = others.processors();
    row.update(row_of(timings.front(), c.amount));
    row.update({{"amount", c.amount}, {"unit", c.unit}});
    if (c.by_kernels) {
      std::vector<double> shares;
      for (std::int64_t i = 0; i < o_.rounds; ++i) {
        kernels::time_kernels(true);
        const auto all = c.ours();
        shares.push_back(1 - kernels::seconds_in_kernels() / all);
      }
      kernels::time_kernels(false);
      std::nth_element(shares.begin(), shares.begin() + o_.rounds / 2, shares.end());
      row["outside_kernels"] = shares[static_cast<std::size_t>(o_.rounds / 2)];
    }
    if (c.bytes > 0 || c.flops > 0) {
      row["bytes"] = c.bytes;
      row["flops"] = c.flops;
      auto bytes_per_s = bandwidth_.per_s;
      if (reading) {
        const auto& passes = timings.back();
        const auto bytes = static_cast<double>(reading->bytes());
        bytes_per_s = bytes / passes.least;
        row["read_bytes_per_s"] = {{"median", bytes / passes.median},
                                   {"least", bytes / passes.most},
                                   {"most", bytes / passes.least}};
      }
      const auto best = products_.best.per_s;
      const auto took = timings.front().median;
      row["limited_by"] = c.bytes / bytes_per_s > c.flops / best ? "memory" : "products";
      row["share_of_limit"] = least_seconds(c, bytes_per_s, best) / took;
      row["share_of_floats"] =
          least_seconds(c, bytes_per_s, std::max(products_.f32.per_s, products_.bf16.per_s)) / took;
    }
    for (std::size_t i = 0; i < c.peers.size(); ++i) {
      auto peer = row_of(timings[i + 1], c.amount);
      peer["name"] = c.peers[i].first;
      row["peers"].push_back(std::move(peer));
      const auto ratio = timings[i + 1].median / timings.front().median;
      if (!row.contains("ratio") || ratio < row["ratio"].get<double>()) {
        row["ratio"] = ratio;
        row["best_peer"] = c.peers[i].first;
      }
    }
    return row;
  }

  /// The share of the limit; where products of 8 bits set it, also of those of unrounded numbers.
  [[nodiscard]] std::string share_told(const json& row) const {
    if (!row.contains("share_of_limit")) return {};
    const auto share = row["share_of_limit"].get<double>();
    const auto of_floats = row["share_of_floats"].get<double>();
    const auto told =
        fmt::format("{:.0f} % of {}", 100 * share, row["limited_by"].get<std::string>());
    if (of_floats <= share) return told;
    return fmt::format("{}, {:.0f} % with those in {}", told, 100 * of_floats,
                       products_.bf16.per_s > products_.f32.per_s ? "bf16" : "f32");
  }

  [[nodiscard]] SuiteReport report(json rows) const {
    SuiteReport out;
    const auto level = std::string(kernels::name(kernels::level()));
    out.text = fmt::format(
        "{}, level {}, {} threads; {} and {}; median of {} rounds{}.\n\nThis machine reads {:.1f} "
        "GB/s ({}) and multiplies {:.0f} GFLOP/s ({}; ATen {:.0f} in f32{}).\n\n",
        kernels::cpu_model(), level, at::get_num_threads(), base_->name, embedder_->name(),
        o_.rounds, o_.noisy ? ", on a busy machine" : "", bandwidth_.per_s * 1e-9, bandwidth_.by,
        products_.best.per_s * 1e-9, products_.best.by, products_.f32.per_s * 1e-9,
        products_.bf16.per_s > 0
            ? fmt::format("; {:.0f} in bf16, {}", products_.bf16.per_s * 1e-9, products_.bf16.by)
            : "");
    out.text +=
        "| measured | depth | batch | kv | tokens/s (least, most) | share of the limit | outside "
        "kernels | beside | its tokens/s | ratio | note "
        "|\n|---|--:|--:|---|--:|--:|--:|---|--:|--:|---|\n";
    for (const auto& row : rows) {
      if (row.contains("refusal")) {
        out.text += fmt::format("| {} | {} | {} | {} | | | | | | | refused: {} |\n",
                                row["measure"].get<std::string>(), row["depth"].get<std::int64_t>(),
                                row["batch"].get<std::int64_t>(), row["kv"].get<std::string>(),
                                row["refusal"].get<std::string>());
        continue;
      }
      const auto amount = row["amount"].get<double>();
      out.text += fmt::format(
          "| {} | {} | {} | {} | {:.0f} ({:.0f}, {:.0f}) | {} | {} |",
          row["measure"].get<std::string>(),
          row["depth"].get<std::int64_t>() > 0 ? std::to_string(row["depth"].get<std::int64_t>())
                                               : "",
          row["batch"].get<std::int64_t>(), row["kv"].get<std::string>(),
          row["per_s"].get<double>(), amount / row["most_s"].get<double>(),
          amount / row["least_s"].get<double>(), share_told(row),
          row.contains("outside_kernels")
              ? fmt::format("{:.0f} %", 100 * row["outside_kernels"].get<double>())
              : "");
      if (row.contains("ratio")) {
        const auto best =
            std::find_if(row["peers"].begin(), row["peers"].end(),
                         [&](const json& peer) { return peer["name"] == row["best_peer"]; });
        out.text += fmt::format(" {} | {:.0f} | {:.2f} |", row["best_peer"].get<std::string>(),
                                (*best)["per_s"].get<double>(), row["ratio"].get<double>());
      } else {
        out.text += " | | |";
      }
      std::vector<std::string> notes;
      if (row.contains("lengths")) {
        const auto lengths = row["lengths"].get<std::vector<std::int64_t>>();
        notes.push_back(fmt::format("lengths {} to {}", lengths.front(), lengths.back()));
      }
      if (const auto busy = row["busy"].get<double>(); busy > kBusy)
        notes.push_back(fmt::format("something else ran on {:.1f} processors", busy));
      out.text += fmt::format(" {} |\n", fmt::join(notes, "; "));
    }
    out.figures = {{"rows", std::move(rows)},
                   {"cpu", kernels::cpu_model()},
                   {"level", level},
                   {"threads", at::get_num_threads()},
                   {"model", base_->name},
                   {"embedder", embedder_->name()},
                   {"read_bytes_per_s", bandwidth_.per_s},
                   {"read_by", bandwidth_.by},
                   {"flops_per_s", products_.best.per_s},
                   {"flops_by", products_.best.by},
                   {"f32_flops_per_s", products_.f32.per_s},
                   {"f32_flops_by", products_.f32.by},
                   {"bf16_flops_per_s", products_.bf16.per_s},
                   {"bf16_flops_by", products_.bf16.by}};
    return out;
  }

  Options o_;
  std::function<void()> between_;
  std::vector<std::int64_t> depths_, batches_;
  std::vector<std::string> measures_, against_;
  std::vector<std::pair<std::string, std::shared_ptr<const KvPlan>>> plans_;
  std::shared_ptr<MemoryModels> models_;
  std::shared_ptr<const LanguageModel> base_;
  std::shared_ptr<const SentenceEncoder> embedder_;
  std::string text_;
  std::vector<std::int32_t> ids_;
  std::vector<Span> passages_;
  std::array<std::vector<std::string>, 2> embedded_;  // passages, single sentences
  ScratchFolder scratch_;
  std::optional<Peer> llama_, sentence_transformers_;
  ReadLimit bandwidth_;     // bytes a second, of as many as a step takes
  ProductLimits products_;  // FLOPs a second
};

void enrol(Registry& r) {
  r.add<Suite, Speed>("speed", "tokens a second, beside the machine's limits and other engines");
}

}  // namespace mneme::suites::speed
