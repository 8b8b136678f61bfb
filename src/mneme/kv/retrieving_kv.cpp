#include "mneme/kv/retrieving_kv.h"

#include "mneme/core/error.h"
#include "mneme/core/registry.h"
#include "mneme/core/sole_owner.h"
#include "mneme/kernels/codec.h"
#include "mneme/kernels/observe.h"
#include "mneme/kv/page_memory.h"
#include "mneme/kv/plan.h"
#include "mneme/kv/retrieve_made.h"
#include "mneme/mixers/attention/products.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <fmt/format.h>
#include <limits>
#include <set>

namespace mneme {
namespace {

using kernels::kPageEntries;
constexpr float kSeesNothing = -std::numeric_limits<float>::infinity();

at::Tensor with_unit_stride(const at::Tensor& x) {
  return x.stride(-1) == 1 || x.size(-1) == 1 ? x : x.contiguous();
}

/// n numbers as f32.
void widen(const std::byte* from, std::int64_t n, bool half, float* out) {
  if (!half) {
    std::memcpy(out, from, static_cast<std::size_t>(n) * sizeof(float));
    return;
  }
  const auto* numbers = reinterpret_cast<const c10::Half*>(from);
  for (std::int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(numbers[i]);
}

/// Joins attention over other entries, out and lse of n queries of d numbers, into `out` and `lse`.
void join(float* out, float* lse, const float* other_out, const float* other_lse, std::int64_t n,
          std::int64_t d, const std::vector<std::int64_t>& place_of_lse) {
  for (std::int64_t i = 0; i < n; ++i) {
    auto& a = lse[place_of_lse[static_cast<std::size_t>(i)]];
    const auto b = other_lse[place_of_lse[static_cast<std::size_t>(i)]];
    if (b == kSeesNothing) continue;
    const auto most = std::max(a, b);
    const auto wa = std::exp(a - most), wb = std::exp(b - most), sum = wa + wb;
    const auto mine = wa / sum, others = wb / sum;
    auto* to = out + i * d;
    const auto* from = other_out + i * d;
    for (std::int64_t j = 0; j < d; ++j) to[j] = mine * to[j] + others * from[j];
    a = most + std::log(sum);
  }
}

}  // namespace

RetrievingKv::RetrievingKv(const KvShape& shape, std::int64_t layer, std::int64_t rows,
                           const RetrieveSettings& settings,
                           std::shared_ptr<const RetrieveMethod> method)
    : shape_(shape),
      layer_(layer),
      settings_(settings),
      method_(std::move(method)),
      rows_(static_cast<std::size_t>(rows)),
      store_(settings.blocks) {
  if (shape.key != shape.value || shape.key % 8 != 0 || shape.key > kernels::kMostHeadWidth) {
    throw Error(Errc::unsupported,
                fmt::format("kv: '{}' takes keys and values of one width, a multiple of 8 up to "
                            "{}, not {} and {}",
                            settings.spec, kernels::kMostHeadWidth, shape.key, shape.value));
  }
}

std::int64_t RetrievingKv::number_bytes() const { return half_.value_or(true) ? 2 : 4; }

kernels::KvType RetrievingKv::kernel_type() const {
  return half_.value_or(true) ? kernels::KvType::f16 : kernels::KvType::f32;
}

void RetrievingKv::set_type(Compute compute) {
  if (!half_) half_ = !keeps_f32(compute);
}

// ---- writing ----

std::shared_ptr<RetrievingKv::Page> RetrievingKv::new_page() const {
  auto page = std::allocate_shared<Page>(PageAllocator<Page>());
  const auto matrix = shape_.heads * kPageEntries * shape_.key * number_bytes();
  page->bytes = page_memory(matrix * (keeps_plain() ? 3 : 2));
  page->turned = page->bytes.get();
  page->values = page->turned + matrix;
  if (keeps_plain()) page->plain = page->values + matrix;
  return page;
}

void RetrievingKv::append(const at::Tensor& keys, const at::Tensor& values, const Call& call) {
  if (keys.size(0) != rows())
    throw Error(Errc::invalid, fmt::format("the state holds {} sequences, the call brings {}",
                                           rows(), keys.size(0)));
  if (c10::GradMode::is_enabled() && (keys.requires_grad() || values.requires_grad()))
    throw Error(Errc::unsupported,
                fmt::format("kv: '{}' carries no gradients: train without it", settings_.spec));
  if (pending_.keys.defined()) settle();
  set_type(call.compute);
  pending_ = {with_unit_stride(keys.to(at::kCPU, at::kFloat)),
              with_unit_stride(values.to(at::kCPU, at::kFloat)),
              call.positions.to(at::kCPU, at::kLong).contiguous(), call.lengths};
}

void RetrievingKv::take_pending(Row& row, std::int64_t b, std::int64_t begin,
                                std::int64_t n) const {
  const auto H = shape_.heads, d = shape_.key, T = pending_.keys.size(2);
  thread_local std::vector<float> numbers;  // keys and values [H,n,K]
  numbers.resize(static_cast<std::size_t>(2 * H * n * d));
  auto* to = numbers.data();
  for (const auto* x : {&pending_.keys, &pending_.values}) {
    const auto* from = x->const_data_ptr<float>() + b * x->stride(0);
    for (std::int64_t h = 0; h < H; ++h) {
      for (std::int64_t t = begin; t < begin + n; ++t, to += d)
        std::copy_n(from + h * x->stride(1) + t * x->stride(2), d, to);
    }
  }
  take(row, n, numbers.data(), numbers.data() + H * n * d,
       pending_.positions.const_data_ptr<std::int64_t>() + b * T + begin);
}

void RetrievingKv::take(Row& row, std::int64_t n, const float* keys, const float* values,
                        const std::int64_t* positions) const {
  const auto H = shape_.heads, d = shape_.key, size = number_bytes();
  thread_local std::vector<float> turned;
  turned.assign(keys, keys + H * n * d);
  if (shape_.rope) shape_.rope->rotate(turned.data(), H, n, positions);
  for (std::int64_t done = 0; done < n;) {
    const bool sink = row.seen < settings_.sinks;
    auto& pages = sink ? row.sinks : row.window;
    if (pages.empty() || pages.back().entries == kPageEntries) {
      pages.push_back({new_page(), row.seen, 0, {}, {}});
    } else if (!sole_owner(pages.back().page)) {  // a fork reads it
      auto copy = new_page();
      copy->positions = pages.back().page->positions;
      copy->indices = pages.back().page->indices;
      std::memcpy(copy->bytes.get(), pages.back().page->bytes.get(),
                  static_cast<std::size_t>(H * kPageEntries * d * size * (keeps_plain() ? 3 : 2)));
      pages.back().page = std::move(copy);
    }
    auto& recent = pages.back();
    auto& page = *recent.page;
    auto count = std::min(n - done, kPageEntries - recent.entries);
    if (sink) count = std::min(count, settings_.sinks - row.seen);
    const auto put = [&](const float* from, std::byte* to) {
      for (std::int64_t h = 0; h < H; ++h)
        kernels::round_numbers(from + (h * n + done) * d, count * d, kernel_type(),
                               to + (h * kPageEntries + recent.entries) * d * size);
    };
    put(turned.data(), page.turned);
    put(values, page.values);
    if (page.plain != nullptr) put(keys, page.plain);
    for (std::int64_t i = 0; i < count; ++i) {
      const auto at = static_cast<std::size_t>(recent.entries + i);
      page.positions[at] = positions[done + i];
      page.indices[at] = row.seen + i;
    }
    recent.entries += count;
    row.seen += count;
    done += count;
  }
}

void RetrievingKv::settle() {
  if (pending_.keys.defined()) {  // nobody attended: nothing is known of their weights
    const auto T = pending_.keys.size(2);
    for (std::int64_t b = 0; b < rows(); ++b) {
      const auto n = pending_.lengths.empty() ? T : pending_.lengths[static_cast<std::size_t>(b)];
      take_pending(rows_[static_cast<std::size_t>(b)], b, 0, n);
    }
  }
  pending_ = {};
  for (auto& row : rows_) make_blocks(row);
}

void RetrievingKv::place(std::int64_t row, const KvSlice& slice, std::int64_t position,
                         Compute compute) {
  if (!slice.places.empty())
    throw Error(Errc::unsupported,
                "heads that hold entries of their own choice cannot be placed here");
  const auto fits = [&](const at::Tensor& x) {
    return x.dim() == 3 && x.size(0) == shape_.heads && x.size(2) == shape_.key;
  };
  if (!fits(slice.keys) || !fits(slice.values) || slice.keys.size(1) != slice.values.size(1)) {
    throw Error(Errc::mismatch,
                fmt::format("entries of another shape than {} heads of {} numbers cannot be placed "
                            "here",
                            shape_.heads, shape_.key));
  }
  set_type(compute);
  const auto k = slice.keys.to(at::kFloat).contiguous(),
             v = slice.values.to(at::kFloat).contiguous();
  const auto n = k.size(1);
  std::vector<std::int64_t> positions(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) positions[static_cast<std::size_t>(i)] = position + i;
  auto& to = rows_.at(static_cast<std::size_t>(row));
  take(to, n, k.const_data_ptr<float>(), v.const_data_ptr<float>(), positions.data());
  make_blocks(to);
}

// ---- blocks ----

void RetrievingKv::make_blocks(Row& row) const {
  if (query_heads_ == 0) return;  // what stands for a block is made for every query head
  for (;;) {
    const auto left = row.seen - settings_.local + 1 - settings_.sinks - row.blocked;
    if (left <= 0 || !method_->ready(left)) return;
    auto rest = left;
    for (const auto n : method_->cut(left_entries(row, left))) {
      MNEME_ASSERT(n > 0 && n <= rest);
      make_block(row, n);
      rest -= n;
    }
    MNEME_ASSERT(rest < left);
  }
}

LeftEntries RetrievingKv::left_entries(const Row& row, std::int64_t left) const {
  LeftEntries out;
  out.entries = left;
  const auto band = settings_.band, begin = settings_.sinks + row.blocked;
  if (band == 0) return out;
  out.weights.resize(static_cast<std::size_t>(left * band));
  out.even.resize(static_cast<std::size_t>(left));
  for (const auto& recent : row.window) {
    const auto from = std::max(begin, recent.first),
               to = std::min(begin + left, recent.first + recent.entries);
    for (auto i = from; i < to && !recent.band.empty(); ++i) {
      const auto at = i - begin;
      std::copy_n(recent.band.data() + (i - recent.first) * band, std::min(band, at + 1),
                  out.weights.data() + at * band);
      out.even[static_cast<std::size_t>(at)] =
          1.F / static_cast<float>(std::min(settings_.local, i + 1 - settings_.sinks));
    }
  }
  return out;
}

void RetrievingKv::make_block(Row& row, std::int64_t n) const {
  const auto H = shape_.heads, d = shape_.key, size = number_bytes(), Hq = query_heads_,
             begin = settings_.sinks + row.blocked, end = begin + n;
  const auto bytes = 2 * H * n * d * size;
  auto numbers = page_memory(bytes);
  std::vector<float> weights(static_cast<std::size_t>(Hq * n));
  for (const auto& recent : row.window) {
    const auto from = std::max(begin, recent.first),
               to = std::min(end, recent.first + recent.entries);
    if (from >= to) continue;
    const auto place = from - recent.first, at = from - begin, count = to - from;
    for (std::int64_t h = 0; h < H; ++h) {
      const auto source = (h * kPageEntries + place) * d * size;
      const auto length = static_cast<std::size_t>(count * d * size);
      std::memcpy(numbers.get() + (h * n + at) * d * size, far_keys(*recent.page) + source, length);
      std::memcpy(numbers.get() + ((H + h) * n + at) * d * size, recent.page->values + source,
                  length);
    }
    for (std::int64_t h = 0; h < Hq && !recent.weights.empty(); ++h)
      std::copy_n(recent.weights.data() + h * kPageEntries + place, count,
                  weights.data() + h * n + at);
  }
  add_vectors(row, numbers.get(), n, weights);
  row.blocks.push_back(store_.keep(std::move(numbers), bytes, n));
  row.blocked += n;
  const auto left = std::find_if(row.window.begin(), row.window.end(), [&](const Recent& recent) {
    return recent.first + recent.entries > end;
  });
  row.window.erase(row.window.begin(), left);
}

void RetrievingKv::add_vectors(Row& row, const std::byte* numbers, std::int64_t n,
                               std::span<const float> weights) const {
  const auto d = shape_.key, size = number_bytes(), Hq = query_heads_, G = Hq / shape_.heads,
             width = vector_width();
  row.vectors.resize(static_cast<std::size_t>(score_heads()), VectorTable(width));
  std::vector<float> key(static_cast<std::size_t>(d));
  const auto read_key = [&](std::int64_t head, std::int64_t place) {
    widen(numbers + (head * n + place) * d * size, d, *half_, key.data());
  };
  if (settings_.entries > 0) {
    for (std::int64_t h = 0; h < shape_.heads; ++h) {
      for (std::int64_t i = 0; i < n; ++i) {
        read_key(h, i);
        float square = 0;
        for (const auto x : key) square += x * x;
        for (auto& x : key) x /= std::max(std::sqrt(square), 1e-20F);
        row.vectors[static_cast<std::size_t>(h)].add(key);
      }
    }
    return;
  }
  std::vector<float> vector(static_cast<std::size_t>(Hq * d));
  for (std::int64_t h = 0; h < Hq; ++h) {
    const auto places = method_->speakers(
        weights.subspan(static_cast<std::size_t>(h * n), static_cast<std::size_t>(n)));
    MNEME_ASSERT(!places.empty());
    auto* mean = vector.data() + h * d;
    for (const auto place : places) {
      read_key(h / G, place);
      for (std::int64_t i = 0; i < d; ++i) mean[i] += key[static_cast<std::size_t>(i)];
    }
    for (std::int64_t i = 0; i < d; ++i) mean[i] /= static_cast<float>(places.size());
  }
  for (std::int64_t s = 0; s < score_heads(); ++s)
    row.vectors[static_cast<std::size_t>(s)].add(
        {vector.data() + s * width, static_cast<std::size_t>(width)});
}

std::vector<std::vector<std::int64_t>> RetrievingKv::choose(const Row& row,
                                                            const float* far_queries,
                                                            std::int64_t T) const {
  const auto N = static_cast<std::int64_t>(row.blocks.size()), S = score_heads(),
             numbers = query_heads_ * shape_.key, width = numbers / S;
  std::vector<float> mean(static_cast<std::size_t>(numbers)),
      scores(static_cast<std::size_t>(S * N));
  for (std::int64_t t = 0; t < T; ++t) {
    for (std::int64_t i = 0; i < numbers; ++i)
      mean[static_cast<std::size_t>(i)] += far_queries[t * numbers + i];
  }
  for (auto& x : mean) x /= static_cast<float>(T);
  for (std::int64_t s = 0; s < S; ++s)
    row.vectors[static_cast<std::size_t>(s)].products(
        {mean.data() + s * width, static_cast<std::size_t>(width)}, scores.data() + s * N);
  return method_->choose(S, scores, row.blocks);
}

// ---- reading ----

kernels::PageView RetrievingKv::view(const Recent& recent, std::int64_t head, std::int64_t begin,
                                     std::int64_t end, const std::byte* keys) const {
  const auto place = begin - recent.first;
  const auto at = (head * kPageEntries + place) * shape_.key * number_bytes();
  kernels::PageView out{};
  out.k = keys + at;
  out.v = recent.page->values + at;
  out.type = kernel_type();
  out.entries = static_cast<std::int32_t>(end - begin);
  out.positions = recent.page->indices.data() + place;
  out.range = {begin, end - 1};
  return out;
}

Partial RetrievingKv::attend(const at::Tensor& queries, const Call& call, double scale,
                             bool want_lse) const {
  const auto B = queries.size(0), Hq = queries.size(1), T = queries.size(2), d = queries.size(3);
  if (call.pattern.window > 0 || call.pattern.by_segment) {
    throw Error(Errc::unsupported,
                fmt::format("kv: '{}' reads what is far: it takes no layer with a window of its "
                            "own, and no segments",
                            settings_.spec));
  }
  if (c10::GradMode::is_enabled() && queries.requires_grad())
    throw Error(Errc::unsupported,
                fmt::format("kv: '{}' carries no gradients: train without it", settings_.spec));
  if (B != rows() || d != shape_.key || Hq % shape_.heads != 0 ||
      (query_heads_ != 0 && query_heads_ != Hq)) {
    throw Error(
        Errc::invalid,
        fmt::format("queries [{},{},{},{}] do not fit {} sequences of {} heads of {}", B, Hq, T, d,
                    rows(), query_heads_ ? query_heads_ : shape_.heads, shape_.key));
  }
  query_heads_ = Hq;
  const bool writes = pending_.keys.defined();
  MNEME_ASSERT(!writes || pending_.keys.size(2) == T);  // a layer attends to what it appended
  const auto q = with_unit_stride(queries.to(at::kCPU, at::kFloat));
  const auto all_positions = call.positions.to(at::kCPU, at::kLong).contiguous();
  const auto products = attention_products(call.compute);
  auto out = at::zeros({B, T, Hq, d}, q.options());
  at::Tensor lse;
  if (want_lse) lse = at::full({B, Hq, T}, kSeesNothing, q.options());
  std::vector<float> chunk_lse;
  for (std::int64_t b = 0; b < B; ++b) {
    auto& row = rows_[static_cast<std::size_t>(b)];
    const auto n = call.length(b, T);
    auto index = row.seen;
    for (std::int64_t t = 0; t < n;) {
      const auto step = std::min(n - t, settings_.chunk - index % settings_.chunk);
      if (writes) {
        make_blocks(row);
        take_pending(row, b, t, step);
      }
      const Queries chunk{q.const_data_ptr<float>() + b * q.stride(0) + t * q.stride(2),
                          q.stride(1),
                          q.stride(2),
                          step,
                          index,
                          all_positions.const_data_ptr<std::int64_t>() + b * T + t};
      chunk_lse.resize(static_cast<std::size_t>(Hq * step));
      attend_chunk(row, writes ? &row : nullptr, chunk, scale, products,
                   out.mutable_data_ptr<float>() + (b * T + t) * Hq * d, chunk_lse.data());
      for (std::int64_t h = 0; h < Hq && want_lse; ++h)
        std::copy_n(chunk_lse.data() + h * step, step,
                    lse.mutable_data_ptr<float>() + (b * Hq + h) * T + t);
      t += step;
      index += step;
    }
    if (writes) make_blocks(row);
  }
  pending_ = {};
  return {out.transpose(1, 2), lse};
}

/// Kept between calls: a decoding step allocates little.
struct RetrievingKv::Scratch {
  std::vector<float> turned, far;                                 // queries [T,Hq,K]
  std::vector<float> far_out, far_lse, entries_out, entries_lse;  // [T,Hq,K], [Hq,T]
  std::vector<std::int64_t> angle, indices, nearest, place_of_lse;
  std::vector<std::vector<kernels::PageView>>
      pages;  // of the KV heads' windows, then of what is far
  std::deque<std::array<std::int64_t, kPageEntries>> far_positions;
  std::vector<kernels::AttendTask> tasks;
  std::vector<std::shared_ptr<const std::byte>> pinned;
  std::vector<std::byte> gathered;  // keys and values of the entries that a query reads
  std::vector<kernels::PageView> gathered_pages;
};

void RetrievingKv::read_blocks(const Row& row, Row* changing, std::int64_t T, std::int64_t first,
                               Scratch& s) const {
  const auto H = shape_.heads, d = shape_.key, size = number_bytes();
  std::vector<std::vector<std::int64_t>> own;
  const auto* chosen = &row.chosen;
  const bool again = changing && T == 1 && row.steps > 0 && row.steps < settings_.refresh;
  if (!again) own = choose(row, s.far.data(), T);
  if (changing) {
    if (!again) changing->chosen = std::move(own);
    changing->steps = T == 1 ? (again ? row.steps + 1 : 1) : 0;
  } else {
    chosen = &own;
  }
  const bool shared = chosen->size() == 1;
  for (std::size_t c = 0; c < chosen->size(); ++c) {
    const auto begin = shared ? 0 : static_cast<std::int64_t>(c), end = shared ? H : begin + 1;
    for (const auto id : (*chosen)[c]) {
      const auto& block = *row.blocks[static_cast<std::size_t>(id)];
      s.pinned.push_back(block.read());
      const auto n = block.entries();
      for (auto h = begin; h < end; ++h) {
        for (std::int64_t i = 0; i < n; i += kPageEntries) {
          kernels::PageView page{};
          page.k = s.pinned.back().get() + (h * n + i) * d * size;
          page.v = s.pinned.back().get() + ((H + h) * n + i) * d * size;
          page.type = kernel_type();
          page.entries = static_cast<std::int32_t>(std::min(kPageEntries, n - i));
          page.positions = s.nearest.data();
          page.range = {first, first};
          s.pages[static_cast<std::size_t>(H + h)].push_back(page);
        }
      }
    }
  }
}

void RetrievingKv::read_entries(const Row& row, Row* changing, std::int64_t T, std::int64_t first,
                                Scratch& s) const {
  const auto H = shape_.heads, Hq = query_heads_, G = Hq / H, d = shape_.key, size = number_bytes(),
             per_block = row.blocks.front()->entries(),
             most = std::min(settings_.entries, row.vectors.front().rows());
  using Scored = std::pair<float, std::int64_t>;  // cosine times the query's length; entry
  const auto better = [](const Scored& a, const Scored& b) {
    return a.first > b.first || (a.first == b.first && a.second < b.second);
  };
  std::vector<std::vector<Scored>> best(static_cast<std::size_t>(Hq * T));  // heaps, worst on top
  std::vector<float> least(static_cast<std::size_t>(Hq * T));
  std::vector<float> queries(static_cast<std::size_t>(G * T * d));
  for (std::int64_t h = 0; h < H; ++h) {
    for (std::int64_t r = 0; r < G * T; ++r) {
      const auto* from = s.far.data() + (r % T * Hq + h * G + r / T) * d;
      std::copy_n(from, d, queries.data() + r * d);
      float square = 0;
      for (std::int64_t i = 0; i < d; ++i) square += from[i] * from[i];
      least[static_cast<std::size_t>(h * G * T + r)] =
          static_cast<float>(settings_.least_cosine) * std::sqrt(square);
    }
    row.vectors[static_cast<std::size_t>(h)].each_part(
        queries, G * T, [&](std::int64_t begin, std::int64_t n, const float* products) {
          for (std::int64_t r = 0; r < G * T; ++r) {
            auto& heap = best[static_cast<std::size_t>(h * G * T + r)];
            const auto bound = least[static_cast<std::size_t>(h * G * T + r)];
            for (std::int64_t i = 0; i < n; ++i) {
              const Scored x{products[r * n + i], begin + i};
              if (settings_.least_cosine > -1 && !(x.first >= bound)) continue;
              const bool full = static_cast<std::int64_t>(heap.size()) == most;
              if (full && !better(x, heap.front())) continue;
              if (full) {
                std::pop_heap(heap.begin(), heap.end(), better);
                heap.back() = x;
              } else {
                heap.push_back(x);
              }
              std::push_heap(heap.begin(), heap.end(), better);
            }
          }
        });
  }
  if (changing) changing->last->entries.resize(static_cast<std::size_t>(H));
  // Every query's entries side by side, in pages of its own.
  std::int64_t total = 0;
  for (const auto& heap : best) total += static_cast<std::int64_t>(heap.size());
  s.gathered.resize(static_cast<std::size_t>(2 * total * d * size));
  s.gathered_pages.clear();
  s.gathered_pages.reserve(static_cast<std::size_t>(Hq * T * (most / kPageEntries + 1)));
  s.entries_out.assign(static_cast<std::size_t>(T * Hq * d), 0.F);
  s.entries_lse.assign(static_cast<std::size_t>(Hq * T), kSeesNothing);
  auto* keys = s.gathered.data();
  auto* values = keys + total * d * size;
  const auto bytes = static_cast<std::size_t>(d * size);
  // What many queries read is read from a file once.
  std::vector<std::shared_ptr<const std::byte>> held(row.blocks.size());
  for (std::int64_t q = 0; q < Hq * T; ++q) {
    auto& heap = best[static_cast<std::size_t>(q)];
    if (heap.empty()) continue;
    std::sort(heap.begin(), heap.end(),
              [](const Scored& a, const Scored& b) { return a.second < b.second; });
    const auto h = q / T, t = q % T,
               first_page = static_cast<std::int64_t>(s.gathered_pages.size());
    if (changing && t == T - 1) {
      auto& read = changing->last->entries[static_cast<std::size_t>(h / G)];
      for (const auto& x : heap) read.push_back(x.second);
    }
    for (std::size_t i = 0; i < heap.size(); i += kPageEntries) {
      kernels::PageView page{};
      page.k = keys;
      page.v = values;
      page.type = kernel_type();
      page.entries =
          static_cast<std::int32_t>(std::min<std::size_t>(kPageEntries, heap.size() - i));
      page.positions = s.nearest.data();
      page.range = {first, first};
      s.gathered_pages.push_back(page);
      for (auto e = i; e < i + static_cast<std::size_t>(page.entries); ++e) {
        const auto id = heap[e].second / per_block, place = heap[e].second % per_block;
        auto& numbers = held[static_cast<std::size_t>(id)];
        if (!numbers) numbers = row.blocks[static_cast<std::size_t>(id)]->read();
        std::memcpy(keys, numbers.get() + (h / G * per_block + place) * d * size, bytes);
        std::memcpy(values, numbers.get() + ((H + h / G) * per_block + place) * d * size, bytes);
        keys += bytes;
        values += bytes;
      }
    }
    kernels::AttendTask task{};
    task.q = s.far.data() + (t * Hq + h) * d;
    task.heads = 1;
    task.T = 1;
    task.q_head_stride = task.q_time_stride = d;
    task.q_positions = s.indices.data() + t;
    task.pages = std::span(s.gathered_pages).subspan(static_cast<std::size_t>(first_page));
    task.out = s.entries_out.data() + (t * Hq + h) * d;
    task.out_head_stride = task.out_time_stride = d;
    task.lse = s.entries_lse.data() + q;
    s.tasks.push_back(task);
  }
}

void RetrievingKv::attend_chunk(const Row& row, Row* changing, const Queries& queries, double scale,
                                kernels::Products products, float* out, float* lse) const {
  const auto H = shape_.heads, Hq = query_heads_, G = Hq / H, d = shape_.key, T = queries.T,
             first = queries.first, last = first + T - 1, local = settings_.local,
             blocked_end = settings_.sinks + row.blocked;
  thread_local Scratch s;
  const auto numbers = static_cast<std::size_t>(T * Hq * d);
  s.turned.resize(numbers);
  for (std::int64_t t = 0; t < T; ++t) {
    for (std::int64_t h = 0; h < Hq; ++h)
      std::copy_n(queries.data + t * queries.time_stride + h * queries.head_stride, d,
                  s.turned.data() + (t * Hq + h) * d);
  }
  s.indices.resize(static_cast<std::size_t>(T));
  for (std::int64_t t = 0; t < T; ++t) s.indices[static_cast<std::size_t>(t)] = first + t;

  const bool far = last >= local && row.seen > 0;
  const bool one_angle = settings_.place == RetrieveSettings::Place::near;
  if (far && one_angle) {
    s.far = s.turned;
    s.angle.assign(static_cast<std::size_t>(T), local - 1);
    if (shape_.rope) shape_.rope->rotate(s.far.data(), Hq, T, d, Hq * d, s.angle.data());
  }
  if (shape_.rope) shape_.rope->rotate(s.turned.data(), Hq, T, d, Hq * d, queries.positions);
  if (far && !one_angle) s.far = s.turned;

  s.pages.assign(static_cast<std::size_t>(2 * H), {});
  s.tasks.clear();
  s.far_positions.clear();
  const auto each_recent = [&](const auto& use) {
    for (const auto& recent : row.sinks) use(recent, recent.first);
    for (const auto& recent : row.window) use(recent, std::max(recent.first, blocked_end));
  };
  each_recent([&](const Recent& recent, std::int64_t begin) {
    const auto from = std::max(begin, first - local + 1), to = recent.first + recent.entries;
    for (std::int64_t h = 0; h < H && from < to; ++h)
      s.pages[static_cast<std::size_t>(h)].push_back(
          view(recent, h, from, to, recent.page->turned));
  });
  if (far) {
    // A far entry is seen from `local` entries on: it is given the index from which on it is seen, but none before the
    // chunk, so that the window of the kernel, which the local stage needs, holds it.
    each_recent([&](const Recent& recent, std::int64_t begin) {
      const auto to = std::min(recent.first + recent.entries, last - local + 1);
      if (begin >= to) return;
      auto& positions = s.far_positions.emplace_back();
      for (auto i = begin; i < to; ++i)
        positions[static_cast<std::size_t>(i - begin)] = std::max(i + local, first);
      for (std::int64_t h = 0; h < H; ++h) {
        auto page = view(recent, h, begin, to, far_keys(*recent.page));
        page.positions = positions.data();
        page.range = {positions[0], positions[static_cast<std::size_t>(to - begin - 1)]};
        s.pages[static_cast<std::size_t>(H + h)].push_back(page);
      }
    });
    s.far_out.resize(numbers);
    s.far_lse.resize(static_cast<std::size_t>(Hq * T));
  }
  if (changing) changing->last = Step{row.seen, row.blocked, {}};
  const bool retrieves = far && settings_.memories && !row.blocks.empty();
  if (retrieves) {
    s.nearest.assign(kPageEntries, first);
    if (settings_.entries > 0) {
      read_entries(row, changing, T, first, s);
    } else {
      read_blocks(row, changing, T, first, s);
    }
  }
  for (std::int64_t stage = 0; stage < (far ? 2 : 1); ++stage) {
    for (std::int64_t h = 0; h < H; ++h) {
      kernels::AttendTask task{};
      task.q = (stage == 0 ? s.turned.data() : s.far.data()) + h * G * d;
      task.heads = G;
      task.T = T;
      task.q_head_stride = d;
      task.q_time_stride = Hq * d;
      task.q_positions = s.indices.data();
      task.pages = s.pages[static_cast<std::size_t>(stage * H + h)];
      task.out = (stage == 0 ? out : s.far_out.data()) + h * G * d;
      task.out_head_stride = d;
      task.out_time_stride = Hq * d;
      task.lse = (stage == 0 ? lse : s.far_lse.data()) + h * G * T;
      s.tasks.push_back(task);
    }
  }
  kernels::attend(s.tasks, d, static_cast<float>(scale), {true, local}, products);
  if (far) {
    s.place_of_lse.resize(static_cast<std::size_t>(T * Hq));
    for (std::int64_t t = 0; t < T; ++t) {
      for (std::int64_t h = 0; h < Hq; ++h)
        s.place_of_lse[static_cast<std::size_t>(t * Hq + h)] = h * T + t;
    }
    join(out, lse, s.far_out.data(), s.far_lse.data(), T * Hq, d, s.place_of_lse);
    if (retrieves && settings_.entries > 0)
      join(out, lse, s.entries_out.data(), s.entries_lse.data(), T * Hq, d, s.place_of_lse);
  }
  if (changing && method_->wants_weights())
    add_weights(*changing, s.turned.data(), queries, scale, lse);
  if (changing && settings_.band > 0) add_band(*changing, s.turned.data(), queries, scale, lse);
  s.pinned.clear();
}

void RetrievingKv::add_weights(Row& row, const float* turned, const Queries& queries, double scale,
                               const float* lse) const {
  const auto H = shape_.heads, Hq = query_heads_, G = Hq / H, d = shape_.key, T = queries.T,
             first = queries.first, local = settings_.local,
             blocked_end = settings_.sinks + row.blocked;
  std::vector<std::vector<kernels::PageView>> pages(static_cast<std::size_t>(H));
  struct Seen {
    Recent* recent;
    std::int64_t begin, end;
  };
  std::vector<Seen> seen;
  std::int64_t entries = 0;
  for (auto& recent : row.window) {
    const auto from = std::max({recent.first, blocked_end, first - local + 1}),
               to = recent.first + recent.entries;
    if (from >= to) continue;
    seen.push_back({&recent, from, to});
    entries += to - from;
    for (std::int64_t h = 0; h < H; ++h)
      pages[static_cast<std::size_t>(h)].push_back(view(recent, h, from, to, recent.page->turned));
  }
  if (entries == 0) return;
  std::vector<std::int64_t> indices(static_cast<std::size_t>(T));
  for (std::int64_t t = 0; t < T; ++t) indices[static_cast<std::size_t>(t)] = first + t;
  thread_local std::vector<float> sums;  // [Hq,entries]
  sums.assign(static_cast<std::size_t>(Hq * entries), 0.F);
  std::vector<kernels::ObserveTask> tasks;
  for (std::int64_t h = 0; h < H; ++h) {
    kernels::ObserveTask task{};
    task.q = turned + h * G * d;
    task.heads = G;
    task.T = T;
    task.q_head_stride = d;
    task.q_time_stride = Hq * d;
    task.q_positions = indices.data();
    task.pages = pages[static_cast<std::size_t>(h)];
    task.lse = lse + h * G * T;
    task.column_sums = sums.data() + h * G * entries;
    tasks.push_back(task);
  }
  kernels::observe(tasks, d, static_cast<float>(scale), {true, local});
  std::int64_t column = 0;
  for (const auto& [recent, begin, end] : seen) {
    recent->weights.resize(static_cast<std::size_t>(Hq * kPageEntries));
    for (std::int64_t h = 0; h < Hq; ++h) {
      auto* to = recent->weights.data() + h * kPageEntries + begin - recent->first;
      const auto* from = sums.data() + h * entries + column;
      for (std::int64_t i = 0; i < end - begin; ++i) to[i] += from[i];
    }
    column += end - begin;
  }
}

void RetrievingKv::add_band(Row& row, const float* turned, const Queries& queries, double scale,
                            const float* lse) const {
  const auto H = shape_.heads, Hq = query_heads_, G = Hq / H, d = shape_.key, T = queries.T,
             first = queries.first, band = settings_.band;
  const auto begin = std::max(settings_.sinks + row.blocked, first - band + 1),
             entries = row.seen - begin;
  if (entries <= 0) return;
  std::vector<std::int64_t> indices(static_cast<std::size_t>(T));
  for (std::int64_t t = 0; t < T; ++t) indices[static_cast<std::size_t>(t)] = first + t;
  thread_local std::vector<float> weights;  // [G,T,entries]
  std::vector<float> mean(static_cast<std::size_t>(T * band));
  for (std::int64_t h = 0; h < H; ++h) {
    std::vector<kernels::PageView> pages;
    for (const auto& recent : row.window) {
      const auto from = std::max(recent.first, begin), to = recent.first + recent.entries;
      if (from < to) pages.push_back(view(recent, h, from, to, recent.page->turned));
    }
    weights.resize(static_cast<std::size_t>(G * T * entries));
    kernels::ObserveTask task{};
    task.q = turned + h * G * d;
    task.heads = G;
    task.T = T;
    task.q_head_stride = d;
    task.q_time_stride = Hq * d;
    task.q_positions = indices.data();
    task.pages = pages;
    task.lse = lse + h * G * T;
    task.weights = weights.data();
    kernels::observe({&task, 1}, d, static_cast<float>(scale), {true, settings_.local});
    for (std::int64_t g = 0; g < G; ++g) {
      for (std::int64_t t = 0; t < T; ++t) {
        const auto* from = weights.data() + (g * T + t) * entries;
        for (std::int64_t k = 0; k < band && first + t - k >= begin; ++k)
          mean[static_cast<std::size_t>(t * band + k)] +=
              from[first + t - k - begin] / static_cast<float>(Hq);
      }
    }
  }
  for (auto& recent : row.window) {
    for (auto i = std::max(first, recent.first); i < recent.first + recent.entries; ++i) {
      recent.band.resize(static_cast<std::size_t>(kPageEntries * band));
      std::copy_n(mean.data() + (i - first) * band, band,
                  recent.band.data() + (i - recent.first) * band);
    }
  }
}

KvSlice RetrievingKv::read(std::int64_t r, std::int64_t begin, std::int64_t end) const {
  if (begin < 0 || begin > end || end > seen(r))
    throw Error(Errc::invalid,
                fmt::format("entries {} to {} of a row that has taken {}", begin, end, seen(r)));
  const auto& row = rows_[static_cast<std::size_t>(r)];
  const auto H = shape_.heads, d = shape_.key, size = number_bytes(), n = end - begin,
             blocked_end = settings_.sinks + row.blocked;
  KvSlice out{at::empty({H, n, d}), at::empty({H, n, d})};
  const auto put = [&](at::Tensor& to, std::int64_t at, std::int64_t h, const std::byte* from,
                       std::int64_t count) {
    widen(from, count * d, half_.value_or(true), to.mutable_data_ptr<float>() + (h * n + at) * d);
  };
  const auto put_recent = [&](const Recent& recent, std::int64_t least) {
    const auto from = std::max({begin, recent.first, least}),
               to = std::min(end, recent.first + recent.entries), count = to - from;
    for (std::int64_t h = 0; h < H && from < to; ++h) {
      const auto place = from - recent.first, at = (h * kPageEntries + place) * d * size;
      put(out.keys, from - begin, h, far_keys(*recent.page) + at, count);
      put(out.values, from - begin, h, recent.page->values + at, count);
      if (!keeps_plain() && shape_.rope) {
        std::vector<std::int64_t> back;
        for (std::int64_t i = place; i < place + count; ++i)
          back.push_back(-recent.page->positions[static_cast<std::size_t>(i)]);
        shape_.rope->rotate(out.keys.mutable_data_ptr<float>() + (h * n + from - begin) * d, 1,
                            count, back.data());
      }
    }
  };
  for (const auto& recent : row.sinks) put_recent(recent, 0);
  auto first = settings_.sinks;
  for (const auto& block : row.blocks) {
    const auto from = std::max(begin, first), to = std::min(end, first + block->entries());
    if (from < to) {
      if (!keeps_plain() && shape_.rope)
        throw Error(Errc::unsupported,
                    "keys of blocks that stand at their own positions cannot be read unturned");
      const auto numbers = block->read();
      for (std::int64_t h = 0; h < H; ++h) {
        const auto m = block->entries();
        put(out.keys, from - begin, h, numbers.get() + (h * m + from - first) * d * size,
            to - from);
        put(out.values, from - begin, h, numbers.get() + ((H + h) * m + from - first) * d * size,
            to - from);
      }
    }
    first += block->entries();
  }
  for (const auto& recent : row.window) put_recent(recent, blocked_end);
  return out;
}

// ---- the rest of a store ----

void RetrievingKv::use(std::shared_ptr<const KvPlan> plan, std::int64_t layer,
                       std::int64_t /*layers*/) {
  const auto is_own = [&](const Stage& stage) { return print(stage) == settings_.spec; };
  if (!plan || std::none_of(plan->chain().begin(), plan->chain().end(), is_own)) {
    throw Error(Errc::unsupported,
                fmt::format("the KV plan '{}' is not the one that this state was made by: '{}'",
                            plan ? print(plan->chain()) : "", settings_.spec));
  }
  layer_ = layer;
}

std::unique_ptr<StateStore> RetrievingKv::fork() const {
  return std::make_unique<RetrievingKv>(*this);
}

void RetrievingKv::rewind(std::int64_t n) {
  for (const auto& row : rows_) {
    if (!row.blocks.empty())
      throw Error(Errc::unsupported,
                  "blocks have left the window: what stood before the last tokens cannot be gone "
                  "back to");
    if (row.seen < n)
      throw Error(Errc::invalid,
                  fmt::format("rewind by {} tokens where a row has only {}", n, row.seen));
  }
  for (auto& row : rows_) {
    row.last.reset();
    row.seen -= n;
    for (auto* pages : {&row.sinks, &row.window}) {
      while (!pages->empty() && pages->back().first >= row.seen) pages->pop_back();
      if (pages->empty()) continue;
      auto& last = pages->back();
      last.entries = std::min(last.entries, row.seen - last.first);
      if (!last.band.empty())
        std::fill(last.band.begin() + last.entries * settings_.band, last.band.end(), 0.F);
      for (std::size_t h = 0; h < last.weights.size() / kPageEntries; ++h)
        std::fill(
            last.weights.begin() + static_cast<std::ptrdiff_t>(h * kPageEntries) + last.entries,
            last.weights.begin() + static_cast<std::ptrdiff_t>((h + 1) * kPageEntries), 0.F);
    }
  }
}

void RetrievingKv::reset(const std::vector<bool>& which) {
  for (std::size_t b = 0; b < which.size() && b < rows_.size(); ++b) {
    if (which[b]) rows_[b] = Row{};
  }
}

std::unique_ptr<StateStore> RetrievingKv::select(const std::vector<std::int64_t>& which) const {
  auto out = std::make_unique<RetrievingKv>(*this);
  out->rows_.clear();
  for (const auto row : which) out->rows_.push_back(rows_.at(static_cast<std::size_t>(row)));
  return out;
}

std::unique_ptr<StateStore> RetrievingKv::concat(
    const std::vector<const StateStore*>& others) const {
  auto out = std::make_unique<RetrievingKv>(*this);
  for (const auto* store : others) {
    const auto* other = dynamic_cast<const RetrievingKv*>(store);
    if (other && other->settings_.spec != settings_.spec)
      throw Error(Errc::mismatch, "states kept by different KV plans cannot be joined");
    if (!other || other->shape_.heads != shape_.heads || other->shape_.key != shape_.key ||
        (other->half_ && out->half_ && *other->half_ != *out->half_) ||
        (other->query_heads_ && out->query_heads_ && other->query_heads_ != out->query_heads_)) {
      throw Error(Errc::mismatch, "states of different models or number types cannot be joined");
    }
    if (!out->half_) out->half_ = other->half_;
    if (!out->query_heads_) out->query_heads_ = other->query_heads_;
    out->rows_.insert(out->rows_.end(), other->rows_.begin(), other->rows_.end());
  }
  return out;
}

std::int64_t RetrievingKv::seen(std::int64_t row) const {
  return rows_.at(static_cast<std::size_t>(row)).seen;
}

double RetrievingKv::kept(std::int64_t row) const { return static_cast<double>(seen(row)); }

std::int64_t RetrievingKv::blocks(std::int64_t row) const {
  return static_cast<std::int64_t>(rows_.at(static_cast<std::size_t>(row)).blocks.size());
}

std::int64_t RetrievingKv::recent(std::int64_t row) const {
  return seen(row) - rows_.at(static_cast<std::size_t>(row)).blocked;
}

std::int64_t RetrievingKv::vector_bytes() const {
  std::int64_t bytes = 0;
  for (const auto& row : rows_) {
    for (const auto& table : row.vectors) bytes += table.bytes();
  }
  return bytes;
}

std::int64_t RetrievingKv::allocated_bytes() const {
  std::set<const Page*> pages;
  std::vector<std::shared_ptr<const Block>> blocks;
  std::int64_t bytes = vector_bytes();
  for (const auto& row : rows_) {
    for (const auto* list : {&row.sinks, &row.window}) {
      for (const auto& recent : *list) {
        pages.insert(recent.page.get());
        bytes +=
            static_cast<std::int64_t>((recent.weights.size() + recent.band.size()) * sizeof(float));
      }
    }
    blocks.insert(blocks.end(), row.blocks.begin(), row.blocks.end());
  }
  return bytes + resident_bytes(blocks) +
         static_cast<std::int64_t>(pages.size()) * shape_.heads * kPageEntries * shape_.key *
             number_bytes() * (keeps_plain() ? 3 : 2);
}

at::Tensor RetrievingKv::vector(std::int64_t r, std::int64_t block) const {
  std::vector<float> out;
  for (const auto& table : rows_.at(static_cast<std::size_t>(r)).vectors) {
    const auto part = table.row(block);
    out.insert(out.end(), part.begin(), part.end());
  }
  return at::tensor(out).view({-1, shape_.key});
}

const std::vector<std::vector<std::int64_t>>& RetrievingKv::chosen(std::int64_t row) const {
  return rows_.at(static_cast<std::size_t>(row)).chosen;
}

std::optional<std::vector<EntryRange>> RetrievingKv::readable(std::int64_t r,
                                                              std::int64_t head) const {
  const auto& row = rows_.at(static_cast<std::size_t>(r));
  if (!row.last) return std::nullopt;
  const auto at_head = [&](const auto& lists) {
    return lists.size() == 1 ? lists.front() : lists.at(static_cast<std::size_t>(head));
  };
  std::vector<EntryRange> out;
  const auto add = [&](std::int64_t begin, std::int64_t end) {
    if (begin >= end) return;
    if (!out.empty() && out.back().end == begin) {
      out.back().end = end;
    } else {
      out.push_back({begin, end});
    }
  };
  const auto& step = *row.last;
  add(0, std::min(settings_.sinks, step.seen));
  if (!step.entries.empty()) {
    auto entries = at_head(step.entries);
    std::sort(entries.begin(), entries.end());
    entries.erase(std::unique(entries.begin(), entries.end()), entries.end());
    for (const auto i : entries) add(settings_.sinks + i, settings_.sinks + i + 1);
  } else if (!row.chosen.empty()) {
    const auto starts = block_starts(r);
    for (const auto id : at_head(row.chosen)) {
      const auto begin = starts[static_cast<std::size_t>(id)];
      add(begin, begin + row.blocks[static_cast<std::size_t>(id)]->entries());
    }
  }
  add(settings_.sinks + step.blocked, step.seen);
  return out;
}

std::vector<std::int64_t> RetrievingKv::block_starts(std::int64_t row) const {
  std::vector<std::int64_t> out;
  auto first = settings_.sinks;
  for (const auto& block : rows_.at(static_cast<std::size_t>(row)).blocks) {
    out.push_back(first);
    first += block->entries();
  }
  return out;
}

void RetrievingKv::save(ByteWriter& out) const {
  const auto H = shape_.heads, d = shape_.key, size = number_bytes();
  write_made(out, settings_.spec, shape_, layer_);
  out.value(query_heads_);
  out.value(static_cast<std::uint8_t>(half_ ? (*half_ ? 2 : 1) : 0));
  out.value(static_cast<std::uint64_t>(rows_.size()));
  for (const auto& row : rows_) {
    out.value(row.seen);
    for (const auto* list : {&row.sinks, &row.window}) {
      out.value(static_cast<std::uint64_t>(list->size()));
      for (const auto& recent : *list) {
        const auto n = recent.entries;
        out.value(recent.first);
        out.value(n);
        out.raw(recent.page->positions.data(), static_cast<std::size_t>(n) * 8);
        for (const auto* matrix : {recent.page->turned, recent.page->values, recent.page->plain}) {
          for (std::int64_t h = 0; h < H && matrix != nullptr; ++h)
            out.raw(matrix + h * kPageEntries * d * size, static_cast<std::size_t>(n * d * size));
        }
        out.value(static_cast<std::uint64_t>(recent.weights.size()));
        out.raw(recent.weights.data(), recent.weights.size() * sizeof(float));
        out.value(static_cast<std::uint64_t>(recent.band.size()));
        out.raw(recent.band.data(), recent.band.size() * sizeof(float));
      }
    }
    out.value(static_cast<std::uint64_t>(row.blocks.size()));
    std::int64_t vector = 0;
    for (std::size_t i = 0; i < row.blocks.size(); ++i) {
      const auto& block = *row.blocks[i];
      out.value(block.entries());
      if (out.counts_only()) {
        out.raw(nullptr, static_cast<std::size_t>(block.bytes()));
      } else {
        out.raw(block.read().get(), static_cast<std::size_t>(block.bytes()));
      }
      for (const auto& table : row.vectors) {
        for (auto v = vector; v < vector + vectors_of(block.entries()); ++v) {
          const auto bytes = table.row_bytes(v);
          out.raw(bytes.data(), bytes.size());
        }
      }
      vector += vectors_of(block.entries());
    }
    out.value(row.steps);
    out.value(static_cast<std::uint64_t>(row.chosen.size()));
    for (const auto& list : row.chosen) {
      out.value(static_cast<std::uint64_t>(list.size()));
      out.raw(list.data(), list.size() * 8);
    }
  }
}

void RetrievingKv::load(ByteReader& in) {
  const auto damaged = [] {
    return Error(Errc::corrupt,
                 "stored keys and values contradict themselves: the state is damaged");
  };
  constexpr std::int64_t kMost = 1 << 16, kFarthest = std::int64_t{1} << 48;
  const auto made = read_made(in);
  auto* store = dynamic_cast<RetrievingKv*>(made.get());
  if (store == nullptr) throw damaged();
  *this = std::move(*store);
  query_heads_ = in.value<std::int64_t>();
  const auto type = in.value<std::uint8_t>();
  const auto H = shape_.heads, d = shape_.key;
  if (query_heads_ < 0 || query_heads_ > kMost || query_heads_ % H != 0 || type > 2)
    throw damaged();
  if (type > 0) half_ = type == 2;
  const auto size = number_bytes();
  rows_.assign(in.count(8), {});
  for (auto& row : rows_) {
    row.seen = in.value<std::int64_t>();
    if (row.seen < 0 || row.seen > kFarthest) throw damaged();
    for (auto* list : {&row.sinks, &row.window}) {
      list->resize(in.count(24));
      for (auto& recent : *list) {
        recent.first = in.value<std::int64_t>();
        recent.entries = in.value<std::int64_t>();
        const auto n = recent.entries;
        if (n < 1 || n > kPageEntries || recent.first < 0 || recent.first > kFarthest)
          throw damaged();
        recent.page = new_page();
        auto& page = *recent.page;
        std::memcpy(page.positions.data(), in.raw(static_cast<std::size_t>(n) * 8).data(),
                    static_cast<std::size_t>(n) * 8);
        for (std::int64_t i = 0; i < n; ++i) {
          const auto at = static_cast<std::size_t>(i);
          if (page.positions[at] < -kFarthest || page.positions[at] > kFarthest) throw damaged();
          page.indices[at] = recent.first + i;
        }
        for (auto* matrix : {page.turned, page.values, page.plain}) {
          for (std::int64_t h = 0; h < H && matrix != nullptr; ++h) {
            const auto bytes = static_cast<std::size_t>(n * d * size);
            std::memcpy(matrix + h * kPageEntries * d * size, in.raw(bytes).data(), bytes);
          }
        }
        const auto numbers = [&](std::vector<float>& x, std::int64_t wanted) {
          x.resize(in.count(sizeof(float)));
          if (!x.empty() && static_cast<std::int64_t>(x.size()) != wanted) throw damaged();
          const auto bytes = x.size() * sizeof(float);
          if (bytes > 0) std::memcpy(x.data(), in.raw(bytes).data(), bytes);
        };
        numbers(recent.weights, query_heads_ * kPageEntries);
        numbers(recent.band, settings_.band * kPageEntries);
      }
    }
    const auto count = in.count(8);
    if (count > 0) {
      if (query_heads_ == 0) throw damaged();
      row.vectors.resize(static_cast<std::size_t>(score_heads()), VectorTable(vector_width()));
    }
    for (std::uint64_t i = 0; i < count; ++i) {
      const auto n = in.value<std::int64_t>();
      if (n < 1 || n > kFarthest / (2 * H * d * size)) throw damaged();
      const auto bytes = 2 * H * n * d * size;
      const auto from = in.raw(static_cast<std::uint64_t>(bytes));
      auto numbers = page_memory(bytes);
      std::memcpy(numbers.get(), from.data(), from.size());
      row.blocks.push_back(store_.keep(std::move(numbers), bytes, n));
      row.blocked += n;
      if (settings_.entries > 0 && n != row.blocks.front()->entries()) throw damaged();
      for (auto& table : row.vectors) {
        for (std::int64_t v = 0; v < vectors_of(n); ++v) {
          const auto vector = in.raw(static_cast<std::uint64_t>(table.bytes_of_row()));
          table.add_bytes({reinterpret_cast<const std::uint8_t*>(vector.data()), vector.size()});
        }
      }
    }
    row.steps = in.value<std::int64_t>();
    row.chosen.resize(in.count(8));
    if (row.steps < 0 ||
        (row.chosen.size() > 1 && static_cast<std::int64_t>(row.chosen.size()) != H))
      throw damaged();
    for (auto& list : row.chosen) {
      list.resize(in.count(8));
      if (!list.empty()) std::memcpy(list.data(), in.raw(list.size() * 8).data(), list.size() * 8);
      for (std::size_t i = 0; i < list.size(); ++i) {
        if (list[i] < 0 || list[i] >= static_cast<std::int64_t>(row.blocks.size()) ||
            (i > 0 && list[i] <= list[i - 1]))
          throw damaged();
      }
    }
    // Attention relies on this: what is held is the row without a gap, sinks in pages of their own.
    auto next = std::int64_t{0};
    for (const auto& recent : row.sinks) {
      if (recent.first != next) throw damaged();
      next += recent.entries;
    }
    if (next != std::min(row.seen, settings_.sinks) || (row.blocked > 0 && next < settings_.sinks))
      throw damaged();
    const auto blocked_end = next + row.blocked;
    next = row.window.empty() ? blocked_end : row.window.front().first;
    if (next > blocked_end || (!row.window.empty() && next < settings_.sinks)) throw damaged();
    for (const auto& recent : row.window) {
      if (recent.first != next) throw damaged();
      next += recent.entries;
    }
    if (next != row.seen || (row.blocked > 0 && row.seen - blocked_end < settings_.local - 1))
      throw damaged();
  }
}

namespace kv::retrieving_kv {

void enrol(Registry& r) {
  r.add<StateStore, RetrievingKv>("retrieving_kv",
                                  "a window near, all other entries in blocks that are retrieved");
}

}  // namespace kv::retrieving_kv

}  // namespace mneme
