// PagedKv and its plan: looking at attention, and dropping, moving, merging and narrowing what is kept.
#include "mneme/core/error.h"
#include "mneme/core/sole_owner.h"
#include "mneme/kernels/observe.h"
#include "mneme/kv/page_memory.h"
#include "mneme/kv/paged_kv.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <numeric>

namespace mneme {

using kernels::kPageEntries;

// ---- looking ----

void PagedKv::find_needs() {
  needs_ = looked_for_;
  if (plan_) needs_.add(plan_->needs());
}

std::optional<std::int64_t> PagedKv::farthest() const {
  if (!plan_ || !plan_->place()) return std::nullopt;
  // A budget lets some heads hold more than their share.
  const auto& evict = plan_->evict();
  if (std::any_of(evict.begin(), evict.end(), [](const auto& e) { return e.budget != nullptr; }))
    return std::nullopt;
  return plan_->max_entries();
}

void PagedKv::look_for(const Needs& needs) {
  looked_for_ = needs;
  find_needs();
}

bool PagedKv::observes() const {
  const auto& wanted = needs_;
  return watched_ || wanted.attention == AttentionLevel::column_sums || wanted.query_window > 0;
}

void PagedKv::observe(const at::Tensor& queries, const at::Tensor& lse, const Call& call,
                      double scale) {
  if (!fused(queries, call)) {
    if (!paged() || !plan_ || plan_->evict().empty()) return;
    throw Error(Errc::unsupported,
                "the KV plan looks at attention, which is not looked at over segments, in other "
                "numbers than f32 or with heads of this width: leave the plan out");
  }
  const auto begin = std::chrono::steady_clock::now();
  const auto B = queries.size(0), Hq = queries.size(1), T = queries.size(2), d = queries.size(3);
  if (group_ != Hq / shape_.heads) {  // none yet, or those of a state that says something else
    for (auto& row : rows_) {
      row.queries.clear();
      row.query_positions.clear();
      for (auto& head : row.heads) head.sums.clear();
    }
    group_ = Hq / shape_.heads;
  }
  scale_ = scale;
  const auto& wanted = needs_;
  thread_local std::vector<float> turned;
  turn_queries(queries, call, turned);
  const auto positions = call.positions.to(at::kCPU, at::kLong).contiguous();
  for (std::int64_t b = 0; b < B; ++b) {
    auto& row = rows_[static_cast<std::size_t>(b)];
    const auto n = call.length(b, T);
    if (n == 0) continue;
    const auto* q = turned.data() + b * T * Hq * d;
    const auto* at = positions.const_data_ptr<std::int64_t>() + b * T;
    if (watched_) {
      const auto of_row = lse[b].narrow(1, 0, n).contiguous();
      note_watched(row, q, of_row.const_data_ptr<float>(), at, n, call);
      continue;
    }
    if (wanted.query_window > 0) {
      const auto fresh = std::min(n, wanted.query_window);
      const auto old = std::min(static_cast<std::int64_t>(row.query_positions.size()),
                                wanted.query_window - fresh);
      const auto drop = static_cast<std::int64_t>(row.query_positions.size()) - old;
      row.queries.erase(row.queries.begin(), row.queries.begin() + drop * Hq * d);
      row.query_positions.erase(row.query_positions.begin(), row.query_positions.begin() + drop);
      row.queries.insert(row.queries.end(), q + (n - fresh) * Hq * d, q + n * Hq * d);
      row.query_positions.insert(row.query_positions.end(), at + n - fresh, at + n);
    }
    if (wanted.attention != AttentionLevel::column_sums) continue;
    std::vector<kernels::ObserveTask> tasks;
    std::vector<std::vector<float>> sums(row.heads.size());
    std::vector<at::Tensor> of_rows;
    Decoded decoded;
    for (std::int64_t h = 0; h < shape_.heads; ++h) {
      const auto& head = row.heads[static_cast<std::size_t>(h)];
      auto& sum = sums[static_cast<std::size_t>(h)];
      sum.resize(static_cast<std::size_t>(group_ * head.entries()));
      of_rows.push_back(lse[b].narrow(0, h * group_, group_).narrow(1, 0, n).contiguous());
      kernels::ObserveTask task{};
      task.q = q + h * group_ * d;
      task.heads = group_;
      task.T = n;
      task.q_head_stride = d;
      task.q_time_stride = Hq * d;
      task.q_positions = at;
      task.pages = pages(head, decoded);
      task.lse = of_rows.back().const_data_ptr<float>();
      task.column_sums = sum.data();
      tasks.push_back(task);
    }
    kernels::observe(tasks, d, static_cast<float>(scale),
                     {call.pattern.causal, call.pattern.window});
    for (std::size_t h = 0; h < row.heads.size(); ++h) {
      auto& head = row.heads[h];
      const auto N = head.entries();
      head.sums.resize(static_cast<std::size_t>(N * group_));
      for (std::int64_t g = 0; g < group_; ++g) {
        for (std::int64_t i = 0; i < N; ++i)
          head.sums[static_cast<std::size_t>(i * group_ + g)] +=
              sums[h][static_cast<std::size_t>(g * N + i)];
      }
    }
  }
  observe_seconds_ +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void PagedKv::summarize(Head& head, std::int64_t h, std::size_t from) {
  const auto& stage = *plan_->select();
  const auto size = stage.summary_size(layer_, shape_.key);
  const auto row = std::find_if(rows_.begin(), rows_.end(), [&](const Row& candidate) {
    return &candidate.heads[static_cast<std::size_t>(h)] == &head;
  });
  MNEME_ASSERT(row != rows_.end());
  head.summaries.resize(head.runs.size());
  for (auto i = from; i < head.runs.size(); ++i) {
    auto& run = head.runs[i];
    head.summaries[i] = nullptr;
    if (size == 0 || run.count < kPageEntries) continue;
    // What is being appended is not counted yet. It may stand where entries stood that were rewound or dropped, of which
    // the page still has a summary.
    const bool fresh = run.page->indices.back() >= row->seen;
    if (fresh || run.page->summarized_by != plan_) {
      if (!sole_owner(run.page)) {  // a fork reads this page, perhaps by another plan
        run.page = make_page(*run.page);
        put_view(head, i, view(run));
      }
      const auto keys = numbers(*run.page).first.to(at::kFloat);
      run.page->summary = page_memory(size * static_cast<std::int64_t>(sizeof(float)));
      stage.summarize(layer_, h, keys.const_data_ptr<float>(), shape_.key,
                      reinterpret_cast<float*>(run.page->summary.get()));
      run.page->summarized_by = plan_;
    }
    head.summaries[i] = reinterpret_cast<const float*>(run.page->summary.get());
  }
}

// ---- dropping ----

void PagedKv::settle() {
  // Entries that carry gradients all stay until `detach`: dropping one would cut its history.
  if (!paged() || !plan_ || plan_->evict().empty() || watched_) return;
  for (std::int64_t b = 0; b < rows(); ++b) settle_row(b, chunk_);
}

/// What the stages see of a row.
class PagedKv::Layer final : public LayerView {
 public:
  Layer(const PagedKv& store, std::int64_t row_index, const Moment& now)
      : store_(store), data_(store.rows_[static_cast<std::size_t>(row_index)]) {
    layer = store.layer_;
    layers = store.layers_;
    row = row_index;
    heads = store.shape_.heads;
    group = store.group_;
    scale = store.scale_;
    moment = now;
    if (!spare().empty()) {
      places_ = std::move(spare().back());
      spare().pop_back();
    }
    places_.resize(data_.heads.size());
    for (std::size_t h = 0; h < places_.size(); ++h) {
      const auto& head = data_.heads[h];
      auto& places = places_[h];
      places.positions.clear();
      places.indices.clear();
      places.hidden = store.hidden(head);
      auto hidden = places.hidden;
      for (const auto& run : head.runs) {
        const auto skip = std::min<std::int64_t>(hidden, run.count);
        hidden -= skip;
        const auto* positions = run.page->positions.data() + run.begin;
        const auto* indices = run.page->indices.data() + run.begin;
        places.positions.insert(places.positions.end(), positions + skip, positions + run.count);
        places.indices.insert(places.indices.end(), indices + skip, indices + run.count);
      }
      if (store.protected_ == 0) continue;
      for (auto& index : places.indices) index -= store.protected_;
    }
  }
  ~Layer() override {
    if (spare().size() < spare().capacity()) spare().push_back(std::move(places_));
  }
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;

  [[nodiscard]] HeadView head(std::int64_t h) const override {
    const auto& places = places_[static_cast<std::size_t>(h)];
    return {layer, row, h, places.positions, places.indices};
  }
  [[nodiscard]] at::Tensor keys(std::int64_t h) const override {
    return seen_of(store_.gathered(of(h)).first, h, 0);
  }
  [[nodiscard]] at::Tensor values(std::int64_t h) const override {
    return seen_of(store_.gathered(of(h)).second, h, 0);
  }
  [[nodiscard]] at::Tensor unrotated_keys(std::int64_t h) const override {
    auto out = keys(h);
    auto back = places_[static_cast<std::size_t>(h)].positions;
    for (auto& position : back) position = -position;
    if (store_.shape_.rope)
      store_.shape_.rope->rotate(out.mutable_data_ptr<float>(), 1, out.size(0), back.data());
    return out;
  }
  [[nodiscard]] at::Tensor turned(const at::Tensor& x,
                                  const std::vector<std::int64_t>& positions) const override {
    auto out = x.to(at::kFloat).contiguous().clone();
    if (store_.shape_.rope)
      store_.shape_.rope->rotate(out.mutable_data_ptr<float>(), 1, out.size(0), positions.data());
    return out;
  }
  [[nodiscard]] at::Tensor queries(std::int64_t h) const override {
    const auto w = static_cast<std::int64_t>(data_.query_positions.size());
    // Copied: what the store holds changes with the next chunk.
    return at::from_blob(const_cast<float*>(data_.queries.data()),
                         {w, heads, group, store_.shape_.key}, at::kFloat)
        .select(1, h)
        .transpose(0, 1)
        .contiguous();
  }
  [[nodiscard]] const std::vector<std::int64_t>& query_positions() const override {
    return data_.query_positions;
  }
  [[nodiscard]] at::Tensor window_weights(std::int64_t h, std::int64_t count) const override {
    const auto all = static_cast<std::int64_t>(data_.query_positions.size()),
               w = std::min(count, all), d = store_.shape_.key;
    const auto q = queries(h).narrow(1, all - w, w).contiguous();
    auto out = at::empty({group, w, d}), lse = at::empty({group, w}),
         weights = at::zeros({group, w, of(h).entries()});
    Decoded decoded;
    const auto pages = store_.pages(of(h), decoded);
    const auto* positions = data_.query_positions.data() + (all - w);
    kernels::AttendTask task{};
    task.q = q.const_data_ptr<float>();
    task.heads = group;
    task.T = w;
    task.q_head_stride = w * d;
    task.q_time_stride = d;
    task.q_positions = positions;
    task.pages = pages;
    task.out = out.mutable_data_ptr<float>();
    task.out_head_stride = w * d;
    task.out_time_stride = d;
    task.lse = lse.mutable_data_ptr<float>();
    kernels::attend({&task, 1}, d, static_cast<float>(scale), {});
    kernels::ObserveTask look{};
    look.q = task.q;
    look.heads = group;
    look.T = w;
    look.q_head_stride = task.q_head_stride;
    look.q_time_stride = d;
    look.q_positions = positions;
    look.pages = pages;
    look.lse = task.lse;
    look.weights = weights.mutable_data_ptr<float>();
    kernels::observe({&look, 1}, d, static_cast<float>(scale), {});
    return seen_of(weights, h, 2);
  }
  [[nodiscard]] at::Tensor column_sums(std::int64_t h) const override {
    const auto& sums = of(h).sums;
    const auto N = of(h).entries();
    if (sums.empty()) return seen_of(at::zeros({group, N}), h, 1);
    const auto all = at::from_blob(const_cast<float*>(sums.data()), {N, group}, at::kFloat);
    return seen_of(all.transpose(0, 1).contiguous(), h, 1);
  }
  [[nodiscard]] at::Tensor reconstruction_weights(std::int64_t h) const override {
    auto all = of(h).again;
    all.resize(static_cast<std::size_t>(of(h).entries()), std::numeric_limits<float>::quiet_NaN());
    return seen_of(at::tensor(all, at::kFloat), h, 0);
  }
  [[nodiscard]] at::Tensor token_ids(std::int64_t h) const override {
    const auto& indices = places_[static_cast<std::size_t>(h)].indices;
    auto out = at::full({static_cast<std::int64_t>(indices.size())}, -1, at::kLong);
    auto* to = out.mutable_data_ptr<std::int64_t>();
    for (const auto index : indices) {
      const auto at = static_cast<std::size_t>(index + store_.protected_);
      *to++ = at < data_.tokens.size() ? data_.tokens[at] : -1;
    }
    return out;
  }

 private:
  struct Places {
    std::vector<std::int64_t> positions, indices;
    std::int64_t hidden = 0;  ///< entries before these, which the plan does not touch
  };
  /// Memory of views that are gone: a plan that drops looks at every layer in every step.
  static std::vector<std::vector<Places>>& spare() {
    thread_local auto the = [] {
      std::vector<std::vector<Places>> out;
      out.reserve(1);
      return out;
    }();
    return the;
  }
  /// The part of x, over all entries of a head along `dim`, that stages see.
  [[nodiscard]] at::Tensor seen_of(const at::Tensor& x, std::int64_t h, std::int64_t dim) const {
    const auto hidden = places_[static_cast<std::size_t>(h)].hidden;
    return hidden == 0 ? x : x.narrow(dim, hidden, x.size(dim) - hidden).contiguous();
  }
  [[nodiscard]] const Head& of(std::int64_t h) const {
    return data_.heads[static_cast<std::size_t>(h)];
  }
  const PagedKv& store_;
  const Row& data_;
  std::vector<Places> places_;
};

namespace {

/// Whether the heads of all layers share what the stage leaves.
bool is_of_model(const KvPlan::Eviction& eviction) {
  return eviction.score && eviction.budget && eviction.budget->over_layers();
}

}  // namespace

void PagedKv::finish_prompt(const std::vector<PagedKv*>& layers) {
  std::vector<PagedKv*> planned;
  for (auto* layer : layers) {
    if (layer->paged() && layer->plan_) planned.push_back(layer);
  }
  if (planned.empty()) return;
  // Loaded stores each have a plan of their own, of the same stages.
  const auto& evictions = planned.front()->plan_->evict();
  for (auto* layer : planned) {
    MNEME_ASSERT(layer->plan_->evict().size() == evictions.size());
    layer->prompt_finished_ = true;
  }
  for (std::int64_t b = 0; b < planned.front()->rows(); ++b) {
    for (std::size_t i = 0; i < evictions.size(); ++i) {
      if (is_of_model(evictions[i])) {
        settle_together(planned, b, i);
        continue;
      }
      for (auto* layer : planned)
        layer->settle_row(b, layer->plan_->evict()[i], layer->at_prompt_end(b));
    }
    for (auto* layer : planned) layer->encode_and_narrow(b);
  }
}

void PagedKv::settle_together(const std::vector<PagedKv*>& layers, std::int64_t r,
                              std::size_t eviction) {
  std::vector<std::pair<PagedKv*, Judged>> due;
  std::vector<at::Tensor> scores;
  for (auto* layer : layers) {
    auto judged = layer->judged(r, layer->plan_->evict()[eviction], layer->at_prompt_end(r));
    if (!judged) continue;
    scores.insert(scores.end(), judged->scores.begin(), judged->scores.end());
    due.emplace_back(layer, std::move(*judged));
  }
  if (due.empty()) return;
  const auto& first = layers.front()->plan_->evict()[eviction];
  const auto budgets =
      first.budget->of_model(scores, due.front().second.each, first.evict->floor());
  auto next = budgets.begin();
  for (auto& [layer, judged] : due) {
    judged.budgets.assign(next, next + layer->shape_.heads);
    next += layer->shape_.heads;
    layer->cut(r, layer->plan_->evict()[eviction], layer->at_prompt_end(r), judged);
  }
}

void PagedKv::encode_and_narrow(std::int64_t r) {
  auto& row = rows_[static_cast<std::size_t>(r)];
  for (auto& head : row.heads) {
    if (encodes()) encode_full_pages(head, 0);
  }
  if (!plan_->narrow()) return;
  plan_->check_profile();
  if (row.query_positions.empty()) return;  // nothing has been asked of the keys yet
  const Layer view(*this, r, at_prompt_end(r));
  for (std::int64_t h = 0; h < shape_.heads; ++h) {
    auto& head = row.heads[static_cast<std::size_t>(h)];
    const auto recent = plan_->narrow()->recent();
    if (head.entries() <= recent) continue;
    head = narrowed(head, plan_->narrow()->channels(view, h), recent);
    refresh(head, 0);
    if (plan_->select()) summarize(head, h, 0);
  }
}

std::int64_t PagedKv::hidden(const Head& head) const {
  return protected_ == 0 ? 0 : head.entries_before(protected_);
}

Moment PagedKv::moment_of(const Row& row, std::int64_t chunk, bool prompt_end) const {
  return {std::max<std::int64_t>(0, row.seen - protected_), chunk, prompt_end};
}

Moment PagedKv::at_prompt_end(std::int64_t row) const {
  return moment_of(rows_[static_cast<std::size_t>(row)], 0, true);
}

void PagedKv::settle_row(std::int64_t r, const KvPlan::Eviction& eviction, const Moment& moment) {
  if (auto due = judged(r, eviction, moment)) cut(r, eviction, moment, *due);
}

void PagedKv::settle_row(std::int64_t r, std::int64_t chunk) {
  const auto now = moment_of(rows_[static_cast<std::size_t>(r)], chunk, false);
  for (const auto& eviction : plan_->evict()) settle_row(r, eviction, now);
}

std::optional<PagedKv::Judged> PagedKv::judged(std::int64_t r, const KvPlan::Eviction& eviction,
                                               const Moment& moment) {
  const auto& row = rows_[static_cast<std::size_t>(r)];
  auto due = eviction.evict->due(moment);
  if (!due) return std::nullopt;
  if (eviction.budget) {
    const auto each = eviction.budget->of_layer(layer_, layers_, due->each);
    *due = {each, due->limit + each - due->each};
  }
  std::int64_t held = 0;
  for (const auto& head : row.heads) held += head.entries() - hidden(head);
  if (held <= due->limit * shape_.heads) return std::nullopt;
  plan_->check_profile();
  // Entries of a memory stand there before any query has come: then there is nothing yet to tell them apart by.
  const bool looks =
      plan_->needs().attention != AttentionLevel::none || plan_->needs().query_window > 0;
  if (looks && row.query_positions.empty() && (group_ == 0 || plan_->needs().query_window > 0))
    return std::nullopt;
  if (eviction.score && eviction.score->needs().reconstruction && row.read_again < row.seen)
    throw Error(Errc::unsupported,
                "the KV plan scores entries by a second pass over the prompt, and none was made: "
                "end the prompt with its model and its tokens");
  const auto begin = std::chrono::steady_clock::now();
  Judged out{.each = due->each, .scores = {}, .budgets = {}};
  if (eviction.score || eviction.budget) {
    const Layer view(*this, r, moment);
    if (eviction.score) out.scores = eviction.score->score(view);
    if (eviction.budget && !is_of_model(eviction))
      out.budgets = eviction.budget->of_heads(view, out.scores, due->each, eviction.evict->floor());
  }
  observe_seconds_ +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return out;
}

void PagedKv::cut(std::int64_t r, const KvPlan::Eviction& eviction, const Moment& moment,
                  Judged& judged) {
  const auto begin = std::chrono::steady_clock::now();
  auto& row = rows_[static_cast<std::size_t>(r)];
  const Layer view(*this, r, moment);
  // Kept between calls: a window that slides on cuts every layer in every step.
  struct Scratch {
    std::vector<Head> cut;
    std::vector<bool> is_cut;
    std::vector<std::int64_t> keep, stay;
    void let_go() {  // of pages; the memory of their lists stays
      for (auto& head : cut) head.runs.clear();
    }
  };
  thread_local Scratch scratch;
  auto& [cut, is_cut, keep, stay] = scratch;
  scratch.let_go();  // where a stage threw
  // All heads are cut only once all are judged: stages see the layer as it was.
  cut.resize(std::max(cut.size(), row.heads.size()));
  is_cut.assign(row.heads.size(), false);
  for (std::int64_t h = 0; h < shape_.heads; ++h) {
    const auto i = static_cast<std::size_t>(h);
    auto& head = row.heads[i];
    const auto first = hidden(head), N = head.entries() - first;
    keep.clear();
    std::span<const float> of_head;
    if (eviction.score) {
      auto& scores = judged.scores[i];
      scores = scores.to(at::kCPU, at::kFloat).contiguous();
      MNEME_ASSERT(scores.numel() == N);
      of_head = {scores.const_data_ptr<float>(), static_cast<std::size_t>(N)};
    }
    eviction.evict->keep(view.head(h), of_head,
                         judged.budgets.empty() ? judged.each : judged.budgets[i], keep);
    MNEME_ASSERT(std::is_sorted(keep.begin(), keep.end()) &&
                 (keep.empty() || (keep.front() >= 0 && keep.back() < N)));
    if (static_cast<std::int64_t>(keep.size()) == N) continue;
    row.dropped = is_cut[i] = true;
    stay.resize(static_cast<std::size_t>(first));
    std::iota(stay.begin(), stay.end(), std::int64_t{0});
    for (const auto place : keep) stay.push_back(first + place);
    keep_of(head, stay, cut[i]);
    if (eviction.merge) {
      const auto [keys, values] = gathered(cut[i]);
      auto kept_keys = keys.narrow(0, first, keys.size(0) - first),
           kept_values = values.narrow(0, first, values.size(0) - first);
      eviction.merge->merge(view, h, keep, kept_keys, kept_values);
      auto merged = rewritten(cut[i], keys, values);
      merged.sums = std::move(cut[i].sums);
      merged.again = std::move(cut[i].again);
      merged.homes = std::move(cut[i].homes);
      cut[i] = std::move(merged);
    }
  }
  for (std::int64_t h = 0; h < shape_.heads; ++h) {
    const auto i = static_cast<std::size_t>(h);
    if (!is_cut[i]) continue;
    auto& head = row.heads[i];
    auto& kept = cut[i];
    if (plan_->place()) {
      head = placed(kept);
    } else if (head.entries() - kept.entries() <= kPageEntries) {
      std::swap(head.runs, kept.runs);
      head.homes = std::move(kept.homes);
      head.sums = std::move(kept.sums);
      head.again = std::move(kept.again);
    } else {  // lists as long as a prompt are not kept
      head = std::move(kept);
    }
    kept.runs.clear();
    refresh(head, 0);
    if (encodes()) encode_full_pages(head, 0);
    if (plan_->select()) summarize(head, h, 0);
  }
  scratch.let_go();
  observe_seconds_ +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void PagedKv::keep_of(const Head& head, const std::vector<std::int64_t>& keep, Head& out) const {
  // A run of kept neighbours goes on living in its page where it fills most of it. Others are copied, filling up the page
  // before: so the pages that they leave are freed. Where little goes, two runs may lie in pages that are mostly empty: a
  // window that slides on by single entries copies none. Only full pages are encoded, so those that are to be are filled up.
  constexpr std::int64_t kMostly = kPageEntries * 3 / 4;
  int sparse = head.entries() - static_cast<std::int64_t>(keep.size()) <= kPageEntries ? 0 : 2;
  out.runs.clear();
  out.homes.clear();
  out.sums.clear();
  out.again.clear();
  auto next = keep.begin();
  std::int64_t first = 0;
  thread_local std::vector<std::int64_t> places;
  for (const auto& run : head.runs) {
    places.clear();
    for (; next != keep.end() && *next < first + run.count; ++next)
      places.push_back(run.begin + *next - first);
    first += run.count;
    if (places.empty()) continue;
    const auto n = static_cast<std::int64_t>(places.size());
    const bool together = places.back() - places.front() + 1 == n;
    const bool fills = !plan_->codec() || run.page->encoded() || n == kPageEntries;
    if (together && ((fills && n >= kMostly) || sparse++ < 2)) {
      out.runs.push_back(
          {run.page, static_cast<std::int32_t>(places.front()), static_cast<std::int32_t>(n)});
    } else {
      append_copies(out, *run.page, places);
    }
  }
  if (const auto homes = static_cast<std::int64_t>(head.homes.size()) / shape_.key; homes > 0) {
    for (const auto i : keep) {
      if (i >= homes) break;
      const auto* from = head.homes.data() + i * shape_.key;
      out.homes.insert(out.homes.end(), from, from + shape_.key);
    }
  }
  for (const auto i : keep) {
    if (static_cast<std::size_t>(i) >= head.again.size()) break;
    out.again.push_back(head.again[static_cast<std::size_t>(i)]);
  }
  if (!head.sums.empty()) {
    out.sums.reserve(keep.size() * static_cast<std::size_t>(group_));
    for (const auto i : keep) {
      const auto* from = head.sums.data() + i * group_;
      out.sums.insert(out.sums.end(), from, from + group_);
    }
  }
}

PagedKv::Head PagedKv::placed(const Head& head) const {
  std::vector<std::int64_t> from;
  for (const auto& run : head.runs)
    from.insert(from.end(), run.page->positions.begin() + run.begin,
                run.page->positions.begin() + run.begin + run.count);
  const auto to = plan_->place()->places(from);
  MNEME_ASSERT(to.size() == from.size());
  const auto K = shape_.key, homes = static_cast<std::int64_t>(head.homes.size()) / K;
  auto moved = static_cast<std::int64_t>(to.size());
  while (moved > 0 &&
         to[static_cast<std::size_t>(moved - 1)] == from[static_cast<std::size_t>(moved - 1)])
    --moved;
  moved = std::max(moved, homes);
  Head out;
  out.sums = head.sums;
  out.again = head.again;
  out.homes = head.homes;
  std::int64_t first = 0;
  for (const auto& run : head.runs) {
    const auto n = std::clamp<std::int64_t>(moved - first, 0, run.count);
    if (n > 0) {
      const auto [k, v] = numbers(*run.page);
      auto keys = k.narrow(0, run.begin, n).to(at::kFloat).contiguous().clone();
      Page page;
      page.indices = run.page->indices;
      std::vector<std::int64_t> back, places(static_cast<std::size_t>(n));
      std::iota(places.begin(), places.end(), run.begin);
      for (std::int64_t i = 0; i < n; ++i)
        back.push_back(-from[static_cast<std::size_t>(first + i)]);
      const auto known = std::clamp<std::int64_t>(homes - first, 0, n);
      auto* numbers_of = keys.mutable_data_ptr<float>();
      if (shape_.rope && known < n)
        shape_.rope->rotate(numbers_of + known * K, 1, n - known, back.data() + known);
      std::copy_n(head.homes.data() + first * K, known * K, numbers_of);
      out.homes.insert(out.homes.end(), numbers_of + known * K, numbers_of + n * K);
      if (shape_.rope) shape_.rope->rotate(numbers_of, 1, n, to.data() + first);
      const auto turned = at::empty({kPageEntries, K}, k.options());
      turned.narrow(0, run.begin, n).copy_(keys);
      for (std::int64_t i = 0; i < n; ++i)
        page.positions[static_cast<std::size_t>(run.begin + i)] =
            to[static_cast<std::size_t>(first + i)];
      append_copies(out, of_tensors(turned, v), page, places);
    }
    if (n < run.count)
      out.runs.push_back({run.page, run.begin + static_cast<std::int32_t>(n),
                          run.count - static_cast<std::int32_t>(n)});
    first += run.count;
  }
  return out;
}

PagedKv::Head PagedKv::rewritten(const Head& like, const at::Tensor& keys,
                                 const at::Tensor& values) const {
  auto type = at::kHalf;
  for (const auto& run : like.runs) {
    if (!run.page->encoded()) type = run.page->number_type();
  }
  Head out;
  std::int64_t first = 0;
  for (const auto& run : like.runs) {
    auto page = make_page();
    page->make_room(shape_.key, shape_.value, type);
    const auto [k, v] = held(*page);
    k.narrow(0, 0, run.count).copy_(keys.narrow(0, first, run.count));
    v.narrow(0, 0, run.count).copy_(values.narrow(0, first, run.count));
    for (std::int32_t i = 0; i < run.count; ++i) {
      const auto place = static_cast<std::size_t>(run.begin + i);
      page->put(i, run.page->positions[place], run.page->indices[place]);
    }
    page->filled = run.count;
    first += run.count;
    out.runs.push_back({std::move(page), 0, run.count});
  }
  return out;
}

std::pair<at::Tensor, at::Tensor> PagedKv::gathered(const Head& head) const {
  const auto N = head.entries();
  auto k = at::empty({N, shape_.key}), v = at::empty({N, shape_.value});
  std::int64_t first = 0;
  for (const auto& run : head.runs) {
    const auto [page_k, page_v] = numbers(*run.page);
    k.narrow(0, first, run.count).copy_(page_k.narrow(0, run.begin, run.count));
    v.narrow(0, first, run.count).copy_(page_v.narrow(0, run.begin, run.count));
    first += run.count;
  }
  return {k, v};
}

PagedKv::Head PagedKv::narrowed(const Head& head, std::vector<std::uint8_t> channels,
                                std::int64_t recent) const {
  Page like;
  like.channels = std::make_shared<const std::vector<std::uint8_t>>(std::move(channels));
  const std::vector<std::int64_t> chosen(like.channels->begin(), like.channels->end());
  const auto index = at::tensor(chosen, at::kLong);
  Head out;
  out.sums = head.sums;
  out.again = head.again;
  auto left = head.entries() - recent;  // to be narrowed
  for (const auto& run : head.runs) {
    const auto n = std::clamp<std::int64_t>(left, 0, run.count);
    left -= run.count;
    if (run.page->channels) {  // narrowed when an earlier prompt ended
      out.runs.push_back(run);
      continue;
    }
    if (n > 0) {
      const auto [k, v] = numbers(*run.page);
      like.positions = run.page->positions;
      like.indices = run.page->indices;
      std::vector<std::int64_t> places(static_cast<std::size_t>(n));
      std::iota(places.begin(), places.end(), run.begin);
      const auto chosen_keys = k.index_select(1, index);
      append_copies(out, of_tensors(chosen_keys, v), like, places);
    }
    if (n == run.count) continue;
    // Copied, so that the newest entries of two pages share the one that is filled next.
    std::vector<std::int64_t> places(static_cast<std::size_t>(run.count - n));
    std::iota(places.begin(), places.end(), run.begin + n);
    append_copies(out, *run.page, places);
  }
  return out;
}

PagedKv::PageNumbers PagedKv::of_tensors(const at::Tensor& k, const at::Tensor& v) {
  return {static_cast<const std::byte*>(k.const_data_ptr()),
          static_cast<const std::byte*>(v.const_data_ptr()), k.size(1), k.scalar_type()};
}

void PagedKv::append_copies(Head& head, const Page& page,
                            const std::vector<std::int64_t>& places) const {
  if (page.encoded()) {
    const auto [k, v] = numbers(page);
    append_copies(head, of_tensors(k, v), page, places);
  } else {
    append_copies(head, {page.k_numbers, page.v_numbers, held_channels(page), page.number_type()},
                  page, places);
  }
}

void PagedKv::append_copies(Head& head, const PageNumbers& from, const Page& like,
                            const std::vector<std::int64_t>& places) const {
  const auto& [k_from, v_from, width, type] = from;
  const auto size = static_cast<std::int64_t>(c10::elementSize(type));
  for (std::size_t done = 0; done < places.size();) {
    auto* last = head.runs.empty() ? nullptr : &head.runs.back();
    const bool fits = last && !last->page->encoded() && last->page->number_type() == type &&
                      last->page->channels == like.channels &&
                      last->begin + last->count < kPageEntries;
    if (!fits) {
      head.runs.push_back({make_page(), 0, 0});
      last = &head.runs.back();
      last->page->make_room(width, shape_.value, type);
      last->page->channels = like.channels;
    } else if (!sole_owner(last->page)) {  // others may be reading it: go on in a copy
      auto copy = make_page();
      copy->make_room(width, shape_.value, type);
      copy->channels = like.channels;
      const auto& before = *last->page;
      std::memcpy(copy->k_numbers, before.k_numbers + last->begin * width * size,
                  static_cast<std::size_t>(last->count * width * size));
      std::memcpy(copy->v_numbers, before.v_numbers + last->begin * shape_.value * size,
                  static_cast<std::size_t>(last->count * shape_.value * size));
      for (std::int32_t i = 0; i < last->count; ++i) {
        const auto place = static_cast<std::size_t>(last->begin + i);
        copy->put(i, before.positions[place], before.indices[place]);
      }
      *last = {std::move(copy), 0, last->count};
    }
    auto& page = *last->page;
    page.filled = last->begin + last->count;
    for (; done < places.size() && page.filled < kPageEntries; ++done) {
      const auto place = places[done];
      std::memcpy(page.k_numbers + page.filled * width * size, k_from + place * width * size,
                  static_cast<std::size_t>(width * size));
      std::memcpy(page.v_numbers + page.filled * shape_.value * size,
                  v_from + place * shape_.value * size,
                  static_cast<std::size_t>(shape_.value * size));
      page.put(page.filled, like.positions[static_cast<std::size_t>(place)],
               like.indices[static_cast<std::size_t>(place)]);
      ++page.filled;
      ++last->count;
    }
  }
}

}  // namespace mneme
