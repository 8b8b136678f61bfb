#include "mneme/kv/paged_kv.h"

#include "mneme/core/error.h"
#include "mneme/core/read_ahead.h"
#include "mneme/core/registry.h"
#include "mneme/core/sole_owner.h"
#include "mneme/core/unwritten.h"
#include "mneme/kernels/codec.h"
#include "mneme/kv/page_memory.h"
#include "mneme/mixers/attention/products.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <fmt/format.h>
#include <functional>
#include <limits>
#include <numeric>
#include <set>

namespace mneme {
namespace {

using kernels::kPageEntries;

/// Stands for the segment of a token that was given none; equal to no segment id of a caller.
constexpr std::int64_t kNoSegment = std::numeric_limits<std::int64_t>::min();

at::ScalarType page_type(Compute compute) { return keeps_f32(compute) ? at::kFloat : at::kHalf; }

kernels::KvType kernel_type(at::ScalarType type) {
  return type == at::kHalf ? kernels::KvType::f16 : kernels::KvType::f32;
}

/// The same, ready to be read through a pointer.
at::Tensor whole_numbers(const at::Tensor& x) {
  const bool ready = x.is_cpu() && x.scalar_type() == at::kLong && x.is_contiguous();
  return ready ? x : x.to(at::kCPU, at::kLong).contiguous();
}

/// The same, each vector of the last dimension in one piece.
at::Tensor whole_vectors(const at::Tensor& x) {
  return x.stride(-1) == 1 || x.size(-1) == 1 ? x : x.contiguous();
}

at::Tensor valid_mask(const Call& call, std::int64_t B, std::int64_t T) {
  if (call.lengths.empty()) return at::ones({B, T}, at::kBool);
  return at::arange(T).unsqueeze(0) < at::tensor(call.lengths, at::kLong).unsqueeze(1);
}

}  // namespace

std::int64_t PagedKv::Head::entries() const {
  std::int64_t n = 0;
  for (const auto& run : runs) n += run.count;
  return n;
}

std::int64_t PagedKv::Head::entries_before(std::int64_t index) const {
  std::int64_t n = 0;
  for (const auto& run : runs) {
    const auto* first = run.page->indices.data() + run.begin;
    if (run.count == 0 || first[0] >= index) break;
    n += std::lower_bound(first, first + run.count, index) - first;
  }
  return n;
}

PagedKv::PagedKv(const KvShape& shape, std::int64_t rows)
    : shape_(shape), rows_(static_cast<std::size_t>(rows)) {
  for (auto& row : rows_) row.heads.resize(static_cast<std::size_t>(shape.heads));
}

// ---- writing ----

void PagedKv::append(const at::Tensor& keys, const at::Tensor& values, const Call& call) {
  const auto B = keys.size(0), T = keys.size(2);
  if (B != rows())
    throw Error(Errc::invalid,
                fmt::format("the state holds {} sequences, the call brings {}", rows(), B));
  if (keys.size(1) != shape_.heads || keys.size(3) != shape_.key || values.size(3) != shape_.value)
    throw Error(Errc::mismatch, "the state's keys and values are of another model");
  const bool differentiable =
      c10::GradMode::is_enabled() && (keys.requires_grad() || values.requires_grad());
  if (!paged() || differentiable || keys.scalar_type() != at::kFloat || !keys.is_cpu()) {
    append_live(keys, values, call);
    return;
  }
  if (call.segments.defined() && plan_ && !plan_->evict().empty() && observes())
    throw Error(Errc::unsupported,
                "the KV plan looks at attention, which is not looked at over segments: leave the "
                "plan out");
  const auto k = whole_vectors(keys), v = whole_vectors(values);
  const auto all_positions = whole_numbers(call.positions);
  const auto all_segments = call.segments.defined() ? whole_numbers(call.segments) : at::Tensor();
  const auto* positions = all_positions.const_data_ptr<std::int64_t>();
  const auto* segments =
      all_segments.defined() ? all_segments.const_data_ptr<std::int64_t>() : nullptr;
  chunk_ = T;
  // Between two steps the weights pass through the caches: the heads' pages are far away, so they are called all at once.
  if (T == 1) {
    for (const auto& row : rows_) {
      for (const auto& head : row.heads) {
        read_ahead.note(&head);
        read_ahead.note(&head.decodes);  // a head is longer than a line
        if (head.runs.empty()) continue;
        const auto& last = head.runs.back();
        read_ahead.note(&last);
        read_ahead.note(last.page.get());
        read_ahead.note(&head.views.back());
        last.page->fetch(last.begin + last.count, shape_);
      }
    }
  }
  const bool tokens = needs_.token_ids;
  const auto ids = tokens && call.ids.defined() ? whole_numbers(call.ids) : at::Tensor();
  thread_local std::vector<float> turned;  // [H,n,K]
  turned.resize(static_cast<std::size_t>(shape_.heads * T * shape_.key));
  for (std::int64_t b = 0; b < B; ++b) {
    const auto n = call.length(b, T);
    for (std::int64_t h = 0; h < shape_.heads; ++h) {
      const auto* from = k.const_data_ptr<float>() + b * k.stride(0) + h * k.stride(1);
      for (std::int64_t t = 0; t < n; ++t)
        std::copy_n(from + t * k.stride(2), shape_.key, turned.data() + (h * n + t) * shape_.key);
    }
    if (shape_.rope) shape_.rope->rotate(turned.data(), shape_.heads, n, positions + b * T);
    auto& row = rows_[static_cast<std::size_t>(b)];
    if (tokens) {
      row.tokens.resize(static_cast<std::size_t>(row.seen), -1);
      for (std::int64_t t = 0; t < n; ++t)
        row.tokens.push_back(ids.defined() ? ids.const_data_ptr<std::int64_t>()[b * T + t] : -1);
    }
    append_row(row, n, {turned.data(), n * shape_.key, shape_.key},
               {v.const_data_ptr<float>() + b * v.stride(0), v.stride(1), v.stride(2)},
               page_type(call.compute), positions + b * T,
               segments == nullptr ? nullptr : segments + b * T);
  }
}

void PagedKv::Page::make_room(std::int64_t K, std::int64_t V, at::ScalarType number_type) {
  const auto size = static_cast<std::int64_t>(c10::elementSize(number_type));
  bytes = page_memory(kPageEntries * (K + V) * size);
  k_numbers = bytes.get();
  v_numbers = k_numbers + kPageEntries * K * size;
  type = kernel_type(number_type);
}

at::ScalarType PagedKv::Page::number_type() const {
  return type == kernels::KvType::f16 ? at::kHalf : at::kFloat;
}

std::shared_ptr<PagedKv::Page> PagedKv::make_page() {
  return std::allocate_shared<Page>(PageAllocator<Page>());
}

std::shared_ptr<PagedKv::Page> PagedKv::make_page(const Page& like) {
  return std::allocate_shared<Page>(PageAllocator<Page>(), like);
}

void PagedKv::Page::hold_code(std::string_view code) {
  code_bytes = static_cast<std::int64_t>(code.size());
  bytes = page_memory(code_bytes);
  std::copy_n(reinterpret_cast<const std::byte*>(code.data()), code.size(), bytes.get());
}

std::string_view PagedKv::Page::code() const {
  return {reinterpret_cast<const char*>(bytes.get()), static_cast<std::size_t>(code_bytes)};
}

void PagedKv::Page::put(std::int64_t i, std::int64_t position, std::int64_t index) {
  positions[static_cast<std::size_t>(i)] = position;
  indices[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(index);
  range = {std::min(range.lowest, position), std::max(range.highest, position)};
}

void PagedKv::Page::fetch(std::int64_t i, const KvShape& shape) const {
  __builtin_prefetch(positions.data() + i, 1);
  __builtin_prefetch(indices.data() + i, 1);
  if (encoded() || channels || i == kPageEntries) return;
  const auto size = static_cast<std::int64_t>(type == kernels::KvType::f32 ? 4 : 2);
  for (std::int64_t at = 0; at < shape.key * size; at += 64)
    __builtin_prefetch(k_numbers + i * shape.key * size + at, 1);
  for (std::int64_t at = 0; at < shape.value * size; at += 64)
    __builtin_prefetch(v_numbers + i * shape.value * size + at, 1);
}

void PagedKv::check_room(const Row& row, std::int64_t n) {
  if (n > kMostTokens - row.seen)
    throw Error(Errc::full,
                fmt::format("a text of more than {} tokens: begin another state", kMostTokens));
}

void PagedKv::append_row(Row& row, std::int64_t n, const Numbers& k, const Numbers& v,
                         at::ScalarType type, const std::int64_t* positions,
                         const std::int64_t* segments) {
  check_room(row, n);
  thread_local std::vector<std::int64_t> indices;
  indices.resize(static_cast<std::size_t>(n));
  std::iota(indices.begin(), indices.end(), row.seen);
  for (std::int64_t h = 0; h < shape_.heads; ++h)
    append_head(row.heads[static_cast<std::size_t>(h)], h, n, k.data + h * k.head_stride,
                k.time_stride, v.data + h * v.head_stride, v.time_stride, type, positions,
                indices.data());
  if (segments || !row.segments.empty()) {
    row.segments.resize(static_cast<std::size_t>(row.seen), kNoSegment);
    for (std::int64_t i = 0; i < n; ++i)
      row.segments.push_back(segments ? segments[i] : kNoSegment);
  }
  row.seen += n;
}

void PagedKv::append_head(Head& head, std::int64_t h, std::int64_t n, const float* k,
                          std::int64_t k_stride, const float* v, std::int64_t v_stride,
                          at::ScalarType type, const std::int64_t* positions,
                          const std::int64_t* indices) {
  const auto kernel = kernel_type(type);
  const auto size = static_cast<std::int64_t>(c10::elementSize(type));
  const auto put = [&](const float* from, std::int64_t stride, std::int64_t count,
                       std::int64_t width, std::byte* to) {
    if (stride == width) {
      kernels::round_numbers(from, count * width, kernel, to);
      return;
    }
    for (std::int64_t i = 0; i < count; ++i)
      kernels::round_numbers(from + i * stride, width, kernel, to + i * width * size);
  };
  const auto touched = head.runs.empty() ? std::size_t{0} : head.runs.size() - 1;
  for (std::int64_t done = 0; done < n;) {
    auto* last = head.runs.empty() ? nullptr : &head.runs.back();
    const bool room = last && !last->page->encoded() && !last->page->channels &&
                      last->page->type == kernel && last->begin + last->count < kPageEntries;
    if (!room) {
      head.runs.push_back({make_page(), 0, 0});
      last = &head.runs.back();
      last->page->make_room(shape_.key, shape_.value, type);
    } else if (!sole_owner(last->page) || last->page->filled == kPageEntries) {
      // A fork reads this page, or, once it is full, its numbers in a page of its own: go on in a copy of our part of it.
      auto copy = make_page(*last->page);
      copy->make_room(shape_.key, shape_.value, type);
      std::memcpy(copy->k_numbers, last->page->k_numbers,
                  static_cast<std::size_t>(kPageEntries * (shape_.key + shape_.value) * size));
      last->page = std::move(copy);
    }
    auto& page = *last->page;
    page.filled = last->begin + last->count;  // what stood behind was rewound
    page.summarized_by = nullptr;
    const auto take = std::min<std::int64_t>(n - done, kPageEntries - page.filled);
    put(k + done * k_stride, k_stride, take, shape_.key,
        page.k_numbers + page.filled * shape_.key * size);
    put(v + done * v_stride, v_stride, take, shape_.value,
        page.v_numbers + page.filled * shape_.value * size);
    for (std::int64_t i = 0; i < take; ++i)
      page.put(page.filled + i, positions[done + i], indices[done + i]);
    page.filled += static_cast<std::int32_t>(take);
    last->count += static_cast<std::int32_t>(take);
    done += take;
  }
  refresh(head, touched);
  if (encodes()) encode_full_pages(head, touched);
  if (plan_ && plan_->select()) summarize(head, h, touched);
  if (!head.sums.empty()) head.sums.resize(static_cast<std::size_t>(head.entries() * group_));
}

void PagedKv::encode_full_pages(Head& head, std::size_t from) {
  for (auto i = from; i < head.runs.size(); ++i) {
    auto& run = head.runs[i];
    if (run.page->encoded() || run.page->channels || run.count < kPageEntries) continue;
    // Written beside the old page and swapped in: a fork may be reading it.
    auto coded = make_page();
    coded->positions = run.page->positions;
    coded->indices = run.page->indices;
    coded->filled = run.page->filled;
    coded->range = run.page->range;
    std::string code;
    const auto [k, v] = held(*run.page);
    plan_->codec()->encode({k.unsqueeze(0).to(at::kFloat), v.unsqueeze(0).to(at::kFloat)}, code);
    coded->hold_code(code);
    const auto coded_view = view({coded, run.begin, run.count});  // may throw: nothing has changed
    run.page = std::move(coded);
    put_view(head, i, coded_view);
  }
}

void PagedKv::append_live(const at::Tensor& keys, const at::Tensor& values, const Call& call) {
  const auto B = keys.size(0), T = keys.size(2);
  auto k = shape_.rope ? (*shape_.rope)(keys, call.positions) : keys;
  const auto positions = call.positions.to(at::kLong), valid = valid_mask(call, B, T);
  const auto join = [](const at::Tensor& old, const at::Tensor& more, std::int64_t dim) {
    return old.defined() ? at::cat({old, more}, dim) : more;
  };
  if (call.segments.defined() || live_.segments.defined()) {
    const auto none = [&](std::int64_t n) { return at::full({B, n}, kNoSegment, at::kLong); };
    if (!live_.segments.defined() && !paged()) live_.segments = none(live_.k.size(2));
    live_.segments =
        join(live_.segments, call.segments.defined() ? call.segments.to(at::kLong) : none(T), 1);
  }
  live_.k = join(live_.k, k, 2);
  live_.v = join(live_.v, values, 2);
  live_.positions = join(live_.positions, positions, 1);
  live_.valid = join(live_.valid, valid, 1);
  for (std::int64_t b = 0; b < B; ++b) rows_[static_cast<std::size_t>(b)].seen += call.length(b, T);
}

void PagedKv::detach() {
  if (paged()) return;
  Live live = std::exchange(live_, {});
  if (live.k.scalar_type() != at::kFloat || !live.k.is_cpu()) {
    live_ = {live.k.detach(), live.v.detach(), live.positions, live.valid, live.segments};
    return;
  }
  const auto k = live.k.detach(), v = live.v.detach();
  for (std::int64_t b = 0; b < rows(); ++b) {
    const auto keep = live.valid.select(0, b).nonzero().flatten();
    auto& row = rows_[static_cast<std::size_t>(b)];
    row.seen -= keep.numel();
    const auto positions = whole_numbers(live.positions.select(0, b).index_select(0, keep));
    const auto segments = live.segments.defined()
                              ? whole_numbers(live.segments.select(0, b).index_select(0, keep))
                              : at::Tensor();
    const auto keys = k.select(0, b).index_select(1, keep).contiguous(),
               values = v.select(0, b).index_select(1, keep).contiguous();
    append_row(row, keep.numel(), {keys.const_data_ptr<float>(), keys.stride(0), keys.stride(1)},
               {values.const_data_ptr<float>(), values.stride(0), values.stride(1)}, at::kFloat,
               positions.const_data_ptr<std::int64_t>(),
               segments.defined() ? segments.const_data_ptr<std::int64_t>() : nullptr);
  }
  settle();
}

void PagedKv::place(std::int64_t r, const KvSlice& slice, std::int64_t position, Compute compute) {
  if (!paged())
    throw Error(Errc::unsupported,
                "a stored span cannot be placed among entries that carry gradients");
  const auto fits = [&](const at::Tensor& x, std::int64_t width) {
    return x.dim() == 3 && x.size(0) == shape_.heads && x.size(2) == width;
  };
  const auto N = slice.keys.dim() == 3 ? slice.keys.size(1) : 0;
  const auto in_range = [&](const std::vector<std::int64_t>& places) {
    return static_cast<std::int64_t>(places.size()) <= N &&
           std::is_sorted(places.begin(), places.end(), std::less_equal<>{}) &&
           (places.empty() || (places.front() >= 0 && places.back() < slice.tokens_of_places));
  };
  if (!fits(slice.keys, shape_.key) || !fits(slice.values, shape_.value) ||
      N != slice.values.size(1) ||
      (!slice.places.empty() &&
       (static_cast<std::int64_t>(slice.places.size()) != shape_.heads ||
        !std::all_of(slice.places.begin(), slice.places.end(), in_range)))) {
    throw Error(
        Errc::mismatch,
        fmt::format(
            "entries of another shape than {} heads of {} and {} numbers cannot be placed here",
            shape_.heads, shape_.key, shape_.value));
  }
  auto& row = rows_.at(static_cast<std::size_t>(r));
  auto k = slice.keys.to(at::kFloat).contiguous().clone();
  const auto v = slice.values.to(at::kFloat).contiguous();
  const auto tokens = slice.tokens();
  check_room(row, tokens);
  if (slice.places.empty()) {
    std::vector<std::int64_t> positions(static_cast<std::size_t>(N));
    std::iota(positions.begin(), positions.end(), position);
    if (shape_.rope)
      shape_.rope->rotate(k.mutable_data_ptr<float>(), shape_.heads, N, positions.data());
    append_row(row, N, {k.const_data_ptr<float>(), N * shape_.key, shape_.key},
               {v.const_data_ptr<float>(), N * shape_.value, shape_.value}, page_type(compute),
               positions.data(), nullptr);
  } else {
    for (std::int64_t h = 0; h < shape_.heads; ++h) {
      const auto& places = slice.places[static_cast<std::size_t>(h)];
      const auto n = static_cast<std::int64_t>(places.size());
      auto positions = places, indices = places;
      for (auto& x : positions) x += position;
      for (auto& x : indices) x += row.seen;
      auto* of_head = k.mutable_data_ptr<float>() + h * N * shape_.key;
      if (shape_.rope) shape_.rope->rotate(of_head, 1, n, positions.data());
      append_head(row.heads[static_cast<std::size_t>(h)], h, n, of_head, shape_.key,
                  v.const_data_ptr<float>() + h * N * shape_.value, shape_.value,
                  page_type(compute), positions.data(), indices.data());
      row.dropped = row.dropped || n < tokens;
    }
    row.seen += tokens;
    if (!row.segments.empty()) row.segments.resize(static_cast<std::size_t>(row.seen), kNoSegment);
  }
  if (plan_) settle_row(r, tokens);
}

// ---- going back ----

void PagedKv::rewind(std::int64_t n) {
  if (!paged()) {
    for (std::int64_t b = 0; b < rows(); ++b) {
      const auto valid = live_.valid.select(0, b).nonzero().flatten();
      if (valid.numel() < n)
        throw Error(Errc::unsupported, "rewind over entries that were already detached");
    }
    live_.valid = live_.valid.clone();
    for (std::int64_t b = 0; b < rows(); ++b) {
      const auto valid = live_.valid.select(0, b).nonzero().flatten();
      live_.valid.select(0, b).index_fill_(0, valid.narrow(0, valid.numel() - n, n), false);
      rows_[static_cast<std::size_t>(b)].seen -= n;
    }
    return;
  }
  for (const auto& row : rows_) {
    if (row.dropped)
      throw Error(
          Errc::unsupported,
          "entries were evicted: what stood before the last tokens is not all there to go back to");
    if (needs_.attention == AttentionLevel::column_sums)
      throw Error(
          Errc::unsupported,
          "what entries received from the last tokens cannot be taken back: the KV plan adds "
          "up attention");
    if (row.seen < n)
      throw Error(Errc::invalid,
                  fmt::format("rewind by {} tokens where a row has only {}", n, row.seen));
  }
  for (auto& row : rows_) {
    row.seen -= n;
    row.read_again = std::min(row.read_again, row.seen);
    if (!row.segments.empty()) row.segments.resize(static_cast<std::size_t>(row.seen));
    if (row.tokens.size() > static_cast<std::size_t>(row.seen))
      row.tokens.resize(static_cast<std::size_t>(row.seen));
    const auto queries =
        std::min<std::size_t>(static_cast<std::size_t>(n), row.query_positions.size());
    if (queries > 0) {
      const auto width = row.queries.size() / row.query_positions.size();
      row.query_positions.resize(row.query_positions.size() - queries);
      row.queries.resize(row.query_positions.size() * width);
    }
    for (auto& head : row.heads) {
      auto drop = n;
      while (drop > 0) {
        auto& run = head.runs.back();
        const auto take = static_cast<std::int32_t>(std::min<std::int64_t>(drop, run.count));
        run.count -= take;
        drop -= take;
        if (run.count == 0) head.runs.pop_back();
      }
      refresh(head, head.runs.empty() ? 0 : head.runs.size() - 1);
      if (static_cast<std::int64_t>(head.again.size()) > head.entries())
        head.again.resize(static_cast<std::size_t>(head.entries()));
      head.sums
          .clear();  // nobody adds up attention any more, and what was rewound cannot be taken out
    }
  }
}

void PagedKv::reset(const std::vector<bool>& which) {
  if (which.size() >= rows_.size() && std::find(which.begin(), which.end(), false) == which.end()) {
    prompt_finished_ = false;
    protected_ = 0;
  }
  for (std::size_t b = 0; b < which.size() && b < rows_.size(); ++b) {
    if (!which[b]) continue;
    rows_[b] = Row{};
    rows_[b].heads.resize(static_cast<std::size_t>(shape_.heads));
    if (!paged()) {
      live_.valid = live_.valid.clone();
      live_.valid.select(0, static_cast<std::int64_t>(b)).fill_(false);
    }
  }
}

// ---- reading ----

std::pair<at::Tensor, at::Tensor> PagedKv::held(const Page& page) const {
  const auto keep = [bytes = page.bytes](void*) {};
  const auto type = page.number_type();
  return {at::from_blob(page.k_numbers, {kPageEntries, held_channels(page)}, keep, type),
          at::from_blob(page.v_numbers, {kPageEntries, shape_.value}, keep, type)};
}

std::pair<at::Tensor, at::Tensor> PagedKv::numbers(const Page& page) const {
  if (page.channels) {
    const auto [k, v] = held(page);
    auto whole = at::zeros({kPageEntries, shape_.key}, k.options());
    const std::vector<std::int64_t> channels(page.channels->begin(), page.channels->end());
    whole.index_copy_(1, at::tensor(channels, at::kLong), k);
    return {whole, v};
  }
  if (!page.encoded()) return held(page);
  MNEME_ASSERT(plan_ && plan_->codec());
  const auto slice = plan_->codec()->decode(page.code(), 1, page.filled, shape_.key, shape_.value);
  return {slice.keys.squeeze(0).contiguous(), slice.values.squeeze(0).contiguous()};
}

kernels::PageView PagedKv::view(const Run& run) const {
  const auto& page = *run.page;
  kernels::PageView out{};
  if (!page.encoded()) {
    const std::int64_t first = run.begin * (page.type == kernels::KvType::f32 ? 4 : 2);
    out.k = page.k_numbers + first * held_channels(page);
    out.v = page.v_numbers + first * shape_.value;
    out.type = page.type;
    if (page.channels) {
      out.channels = page.channels->data();
      out.k_width = static_cast<std::int32_t>(page.channels->size());
    }
  } else {
    MNEME_ASSERT(plan_ && plan_->codec());
    if (const auto encoded = plan_->codec()->view(page.code(), page.filled, shape_.key,
                                                  shape_.value, run.begin, run.count))
      out = *encoded;
  }
  out.entries = run.count;
  out.positions = page.positions.data() + run.begin;
  out.range = page.range;
  return out;
}

void PagedKv::refresh(Head& head, std::size_t from) const {
  head.views.resize(head.runs.size());
  if (from == 0) head.decodes = false;
  for (auto i = from; i < head.runs.size(); ++i) put_view(head, i, view(head.runs[i]));
}

void PagedKv::put_view(Head& head, std::size_t i, const kernels::PageView& view) {
  head.views[i] = view;
  head.decodes = head.decodes || view.k == nullptr;
}

std::span<const kernels::PageView> PagedKv::pages(const Head& head, Decoded& decoded) const {
  if (!head.decodes) return head.views;
  auto& own = decoded.views.emplace_back(head.views);
  for (std::size_t i = 0; i < own.size(); ++i) {
    if (own[i].k != nullptr) continue;
    const auto [k, v] = numbers(*head.runs[i].page);
    decoded.numbers.insert(decoded.numbers.end(), {k, v});
    const auto first = head.runs[i].begin;
    own[i].k = k.const_data_ptr<float>() + first * shape_.key;
    own[i].v = v.const_data_ptr<float>() + first * shape_.value;
    own[i].type = kernels::KvType::f32;
  }
  return own;
}

bool PagedKv::fused(const at::Tensor& queries, const Call& call) const {
  return paged() && queries.is_cpu() && queries.scalar_type() == at::kFloat &&
         !call.pattern.by_segment && shape_.key == shape_.value && shape_.key % 8 == 0 &&
         shape_.key <= kernels::kMostHeadWidth &&
         !(c10::GradMode::is_enabled() && queries.requires_grad());
}

void PagedKv::turn_queries(const at::Tensor& queries, const Call& call,
                           std::vector<float>& turned) const {
  const auto B = queries.size(0), Hq = queries.size(1), T = queries.size(2), d = queries.size(3);
  const auto q = whole_vectors(queries);
  turned.resize(static_cast<std::size_t>(B * T * Hq * d));
  const auto positions = whole_numbers(call.positions);
  for (std::int64_t b = 0; b < B; ++b) {
    auto* row = turned.data() + b * T * Hq * d;
    for (std::int64_t t = 0; t < T; ++t) {
      const auto* from = q.const_data_ptr<float>() + b * q.stride(0) + t * q.stride(2);
      for (std::int64_t h = 0; h < Hq; ++h)
        std::copy_n(from + h * q.stride(1), d, row + (t * Hq + h) * d);
    }
    if (shape_.rope)
      shape_.rope->rotate(row, Hq, T, d, Hq * d, positions.const_data_ptr<std::int64_t>() + b * T);
  }
}

struct PagedKv::Selection {
  /// Things that stay where they are until all are given up; their memory then serves the next.
  template <class T>
  class Reused {
   public:
    void clear() { used_ = 0; }
    [[nodiscard]] std::size_t size() const { return used_; }
    T& operator[](std::size_t i) { return all_[i]; }
    /// One more, as the last one left it that stood there.
    T& next() {
      if (used_ == all_.size()) all_.emplace_back();
      return all_[used_++];
    }

   private:
    std::deque<T> all_;
    std::size_t used_ = 0;
  };

  Reused<std::vector<kernels::PageView>> lists;
  /// Single entries out of pages, together as pages of their own.
  struct Copies {
    std::vector<std::byte> numbers;  ///< [64,K] and [64,V] of the type
    std::array<std::int64_t, kPageEntries> positions;
    kernels::PageView view;
  };
  Reused<Copies> copies;

  [[nodiscard]] std::vector<kernels::PageView>& next_list() {
    auto& list = lists.next();
    list.clear();
    return list;
  }
};

void PagedKv::select_pages(std::int64_t h, std::int64_t group, const Head& head,
                           const float* queries, std::span<const kernels::PageView> all,
                           Selection& out) const {
  plan_->check_profile();
  struct Scratch {
    std::vector<const float*> summaries;
    std::vector<std::size_t> runs;  // of the summaries
    SelectStage::Selected selected;
  };
  thread_local Scratch scratch;
  auto& [summaries, runs, selected] = scratch;
  summaries.clear();
  runs.clear();
  for (std::size_t i = 0; i + 1 < std::min(head.runs.size(), head.summaries.size() + 1); ++i) {
    if (head.summaries[i] == nullptr) continue;
    summaries.push_back(head.summaries[i]);
    runs.push_back(i);
  }
  if (summaries.empty()) {
    out.next_list().assign(all.begin(), all.end());
    return;
  }
  plan_->select()->select({layer_, h, group, shape_.key, queries, summaries}, selected);
  // Pages stay in their order: where all are selected, sums are those of full attention to the last bit.
  if (selected.entries.empty()) {
    auto& list = out.next_list();
    list.reserve(all.size() - runs.size() + selected.pages.size());
    auto page = selected.pages.begin();
    for (std::size_t i = 0, summary = 0; i < all.size(); ++i) {
      if (summary < runs.size() && runs[summary] == i) {
        const bool reads =
            page != selected.pages.end() && static_cast<std::size_t>(*page) == summary;
        ++summary;
        if (!reads) continue;
        ++page;
      }
      list.push_back(all[i]);
    }
    return;
  }
  // Shorter runs of neighbours are cheaper to copy together than to be read as pages.
  constexpr std::int32_t kInPlace = 16;
  for (const auto& entries : selected.entries) {
    auto& list = out.next_list();
    Selection::Copies* copies = nullptr;
    const auto close = [&] {
      if (copies != nullptr) list.push_back(copies->view);
      copies = nullptr;
    };
    for (std::size_t e = 0; e < entries.size();) {
      const auto page = entries[e] / static_cast<std::int32_t>(kPageEntries);
      const auto place = entries[e] % static_cast<std::int32_t>(kPageEntries);
      std::int32_t n = 1;
      while (place + n < kPageEntries && e + static_cast<std::size_t>(n) < entries.size() &&
             entries[e + static_cast<std::size_t>(n)] == entries[e] + n)
        ++n;
      e += static_cast<std::size_t>(n);
      auto view = all[runs[static_cast<std::size_t>(page)]];
      const std::int64_t size = view.type == kernels::KvType::f32 ? 4 : 2;
      const auto k_bytes = (view.channels == nullptr ? shape_.key : view.k_width) * size,
                 v_bytes = shape_.value * size;
      if (view.encoded != 0) {
        view.first += place;
      } else {
        view.k = static_cast<const std::byte*>(view.k) + place * k_bytes;
        view.v = static_cast<const std::byte*>(view.v) + place * v_bytes;
      }
      view.positions += place;
      view.entries = n;
      if (view.encoded != 0 || n >= kInPlace) {
        list.push_back(view);
        continue;
      }
      for (std::int32_t done = 0; done < n;) {
        if (copies == nullptr || copies->view.entries == kPageEntries ||
            copies->view.type != view.type || copies->view.channels != view.channels) {
          close();
          copies = &out.copies.next();
          copies->numbers.resize(static_cast<std::size_t>(kPageEntries * (k_bytes + v_bytes)));
          copies->view = {};
          copies->view.k = copies->numbers.data();
          copies->view.v = copies->numbers.data() + kPageEntries * k_bytes;
          copies->view.positions = copies->positions.data();
          copies->view.type = view.type;
          copies->view.channels = view.channels;
          copies->view.k_width = view.k_width;
        }
        auto& to = copies->view;
        const auto take = std::min<std::int32_t>(n - done, kPageEntries - to.entries);
        std::memcpy(copies->numbers.data() + to.entries * k_bytes,
                    static_cast<const std::byte*>(view.k) + done * k_bytes,
                    static_cast<std::size_t>(take * k_bytes));
        std::memcpy(copies->numbers.data() + kPageEntries * k_bytes + to.entries * v_bytes,
                    static_cast<const std::byte*>(view.v) + done * v_bytes,
                    static_cast<std::size_t>(take * v_bytes));
        std::copy_n(view.positions + done, take, copies->positions.data() + to.entries);
        to.range = {std::min(to.range.lowest, view.range.lowest),
                    std::max(to.range.highest, view.range.highest)};
        to.entries += take;
        done += take;
      }
    }
    close();
    for (std::size_t i = 0, summary = 0; i < all.size(); ++i) {
      if (summary < runs.size() && runs[summary] == i) {
        ++summary;
      } else {
        list.push_back(all[i]);
      }
    }
  }
}

Partial PagedKv::attend(const at::Tensor& queries, const Call& call, double scale,
                        bool want_lse) const {
  const auto B = queries.size(0), Hq = queries.size(1), T = queries.size(2), d = queries.size(3),
             G = Hq / shape_.heads;
  if (B != rows() || d != shape_.key || Hq % shape_.heads != 0)
    throw Error(Errc::mismatch, "the state's keys and values are of another model");
  if (!fused(queries, call)) {
    const auto q = shape_.rope ? (*shape_.rope)(queries, call.positions) : queries;
    const auto entries = dense(queries.scalar_type());
    const bool blockwise = !want_lse && !entries.log_mass.defined() && shape_.key == shape_.value &&
                           q.scalar_type() != at::kDouble;
    return blockwise ? attend_blockwise(q, call.positions, call.segments, entries, call.pattern,
                                        scale, call.segment_sees)
                     : attend_plain(q, call.positions, call.segments, entries, call.pattern, scale,
                                    call.segment_sees);
  }
  // Kept between calls: a decoding step allocates nothing here.
  struct Scratch {
    std::vector<float> turned;  // queries [B,T,Hq,d], as projections lay them out
    std::vector<kernels::AttendTask> tasks;
    Selection selection;
  };
  thread_local Scratch scratch;
  auto& [turned, tasks, selection] = scratch;
  turn_queries(queries, call, turned);
  const auto all_positions = whole_numbers(call.positions);
  const auto* positions = all_positions.const_data_ptr<std::int64_t>();
  // [B,T,Hq,d], so that the heads of a token lie together for the projection that follows.
  // For one token that is [B,Hq,T,d] too.
  const std::array<std::int64_t, 4> sizes =
      T == 1 ? std::array{B, Hq, T, d} : std::array{B, T, Hq, d};
  auto out =
      call.lengths.empty() ? at::Tensor(unwritten(sizes)) : at::zeros(sizes, queries.options());
  at::Tensor lse;
  if (want_lse)
    lse = at::full({B, Hq, T}, -std::numeric_limits<float>::infinity(), queries.options());
  std::optional<Decoded> decoded;  // most plans decode nothing
  selection.lists.clear();
  selection.copies.clear();
  const bool selecting = plan_ && plan_->select() && T == 1;
  tasks.clear();
  for (std::int64_t b = 0; b < B; ++b) {
    const auto* row = turned.data() + b * T * Hq * d;
    const auto n = call.length(b, T);
    if (n == 0) continue;
    for (std::int64_t h = 0; h < shape_.heads; ++h) {
      kernels::AttendTask task{};
      task.q = row + h * G * d;
      task.heads = G;
      task.T = n;
      task.q_head_stride = d;
      task.q_time_stride = Hq * d;
      task.q_positions = positions + b * T;
      const auto& head = rows_[static_cast<std::size_t>(b)].heads[static_cast<std::size_t>(h)];
      task.pages = head.decodes ? pages(head, decoded ? *decoded : decoded.emplace())
                                : std::span<const kernels::PageView>(head.views);
      task.out = out.mutable_data_ptr<float>() + (b * T * Hq + h * G) * d;
      task.out_head_stride = d;
      task.out_time_stride = Hq * d;
      // The kernel writes lse as [G,n]; rows that are shorter than T are spread out by the plain form instead.
      task.lse =
          want_lse && n == T ? lse.mutable_data_ptr<float>() + (b * Hq + h * G) * T : nullptr;
      if (!selecting) {
        tasks.push_back(task);
        continue;
      }
      const auto before = selection.lists.size();
      select_pages(h, G, head, task.q, task.pages, selection);
      const auto lists = static_cast<std::int64_t>(selection.lists.size() - before);
      MNEME_ASSERT(lists == 1 || lists == G);
      for (std::int64_t g = 0; g < lists; ++g) {
        auto part = task;
        part.heads = G / lists;
        part.q += g * d;
        part.out += g * d;
        if (part.lse != nullptr) part.lse += g * T;
        part.pages = selection.lists[before + static_cast<std::size_t>(g)];
        tasks.push_back(part);
      }
    }
  }
  std::vector<std::vector<float>> short_lse;
  if (want_lse) {
    for (auto& task : tasks) {
      if (task.lse == nullptr) {
        short_lse.emplace_back(static_cast<std::size_t>(task.heads * task.T));
        task.lse = short_lse.back().data();
      }
    }
  }
  kernels::attend(tasks, d, static_cast<float>(scale), {call.pattern.causal, call.pattern.window},
                  attention_products(call.compute));
  if (!short_lse.empty()) {
    std::size_t taken = 0;
    for (std::int64_t b = 0; b < B; ++b) {
      const auto n = call.length(b, T);
      if (n == 0 || n == T) continue;
      for (std::int64_t h = 0; h < shape_.heads; ++h)
        lse[b]
            .narrow(0, h * G, G)
            .narrow(1, 0, n)
            .copy_(at::tensor(short_lse[taken++]).view({G, n}));
    }
  }
  return {T == 1 ? out : out.transpose(1, 2), lse};
}

Entries PagedKv::dense(at::ScalarType type) const {
  const auto B = rows(), H = shape_.heads;
  std::int64_t N = 0;
  for (const auto& row : rows_) {
    for (const auto& head : row.heads) N = std::max(N, head.entries());
  }
  const bool segmented =
      live_.segments.defined() ||
      std::any_of(rows_.begin(), rows_.end(), [](const Row& row) { return !row.segments.empty(); });
  Entries out;
  if (N > 0 || paged()) {
    out.keys = at::zeros({B, H, N, shape_.key}, type);
    out.values = at::zeros({B, H, N, shape_.value}, type);
    out.positions = at::zeros({B, H, N}, at::kLong);
    out.valid = at::zeros({B, H, N}, at::kBool);
    if (segmented) out.segments = at::full({B, H, N}, kNoSegment, at::kLong);
    for (std::int64_t b = 0; b < B; ++b) {
      for (std::int64_t h = 0; h < H; ++h) {
        std::int64_t n = 0;
        for (const auto& run :
             rows_[static_cast<std::size_t>(b)].heads[static_cast<std::size_t>(h)].runs) {
          const auto [k, v] = numbers(*run.page);
          out.keys[b][h].narrow(0, n, run.count).copy_(k.narrow(0, run.begin, run.count));
          out.values[b][h].narrow(0, n, run.count).copy_(v.narrow(0, run.begin, run.count));
          std::copy_n(run.page->positions.begin() + run.begin, run.count,
                      out.positions.mutable_data_ptr<std::int64_t>() + (b * H + h) * N + n);
          if (const auto& segments = rows_[static_cast<std::size_t>(b)].segments;
              !segments.empty()) {
            auto* to = out.segments.mutable_data_ptr<std::int64_t>() + (b * H + h) * N + n;
            for (std::int32_t i = 0; i < run.count; ++i)
              to[i] = segments[static_cast<std::size_t>(
                  run.page->indices[static_cast<std::size_t>(run.begin + i)])];
          }
          n += run.count;
        }
        out.valid[b][h].narrow(0, 0, n).fill_(true);
      }
    }
  }
  if (paged()) return out;
  const auto expand = [&](const at::Tensor& x) { return x.unsqueeze(1).expand({B, H, x.size(1)}); };
  Entries live{live_.k, live_.v, expand(live_.positions), expand(live_.valid), {}, {}};
  if (segmented)
    live.segments = live_.segments.defined()
                        ? expand(live_.segments)
                        : at::full({B, H, live_.k.size(2)}, kNoSegment, at::kLong);
  if (!out.keys.defined()) return live;
  return {at::cat({out.keys, live.keys}, 2),
          at::cat({out.values, live.values}, 2),
          at::cat({out.positions, live.positions}, 2),
          at::cat({out.valid, live.valid}, 2),
          {},
          segmented ? at::cat({out.segments, live.segments}, 2) : at::Tensor()};
}

KvSlice PagedKv::read(std::int64_t row, std::int64_t begin, std::int64_t end) const {
  auto out = read_kept(row, begin, end);
  for (const auto& places : out.places) {
    if (static_cast<std::int64_t>(places.size()) != end - begin)
      throw Error(
          Errc::unsupported,
          fmt::format("a head holds {} of the {} entries asked for: the others were evicted",
                      places.size(), end - begin));
  }
  out.places.clear();
  return out;
}

KvSlice PagedKv::read_kept(std::int64_t row, std::int64_t begin, std::int64_t end) const {
  if (!paged())
    throw Error(Errc::unsupported,
                "entries that carry gradients cannot be read out: detach the state first");
  if (begin < 0 || begin > end || end > seen(row))
    throw Error(Errc::invalid,
                fmt::format("entries {} to {} of a row that has taken {}", begin, end, seen(row)));
  const auto& heads = rows_.at(static_cast<std::size_t>(row)).heads;
  std::int64_t n = 0;
  for (const auto& head : heads)
    n = std::max(n, head.entries_before(end) - head.entries_before(begin));
  KvSlice out{at::empty({shape_.heads, n, shape_.key}), at::empty({shape_.heads, n, shape_.value}),
              std::vector<std::vector<std::int64_t>>(heads.size()), end - begin};
  for (std::int64_t h = 0; h < shape_.heads; ++h) {
    auto& places = out.places[static_cast<std::size_t>(h)];
    std::vector<std::int64_t> back;
    for (const auto& run : heads[static_cast<std::size_t>(h)].runs) {
      const auto* indices = run.page->indices.data() + run.begin;
      const auto* first = std::lower_bound(indices, indices + run.count, begin);
      const auto* last = std::lower_bound(first, indices + run.count, end);
      const auto count = last - first;
      if (count == 0) continue;
      const auto found = static_cast<std::int64_t>(places.size());
      const auto from = run.begin + (first - indices);
      const auto [k, v] = numbers(*run.page);
      out.keys[h].narrow(0, found, count).copy_(k.narrow(0, from, count));
      out.values[h].narrow(0, found, count).copy_(v.narrow(0, from, count));
      for (std::int64_t i = 0; i < count; ++i) {
        back.push_back(-run.page->positions[static_cast<std::size_t>(from + i)]);
        places.push_back(first[i] - begin);
      }
    }
    if (shape_.rope)
      shape_.rope->rotate(out.keys[h].mutable_data_ptr<float>(), 1,
                          static_cast<std::int64_t>(back.size()), back.data());
  }
  return out;
}

// ---- the rest of a store ----

void PagedKv::use(std::shared_ptr<const KvPlan> plan, std::int64_t layer, std::int64_t layers) {
  const bool coded =
      plan_ && plan_->codec() &&
      std::any_of(rows_.begin(), rows_.end(), [](const Row& row) { return row.seen > 0; });
  if (coded && (!plan || plan->codec_name() != plan_->codec_name())) {
    throw Error(Errc::unsupported,
                "the KV plan of a state that already holds encoded pages cannot change its codec");
  }
  if (plan && plan->select() && plan->ready())
    (void)plan->select()->summary_size(layer, shape_.key);  // may throw: nothing has changed
  // A state that was loaded follows its plan as its text says it, before it is given the plan itself.
  if (!plan || !plan_ || print(plan->chain()) != print(plan_->chain())) prompt_finished_ = false;
  plan_ = std::move(plan);
  layer_ = layer;
  layers_ = layers;
  find_needs();
  if (!plan_) return;
  for (auto& row : rows_) {
    for (std::int64_t h = 0; h < shape_.heads; ++h) {
      auto& head = row.heads[static_cast<std::size_t>(h)];
      if (encodes()) encode_full_pages(head, 0);
      if (plan_->select()) summarize(head, h, 0);
    }
  }
}

std::unique_ptr<StateStore> PagedKv::fork() const { return std::make_unique<PagedKv>(*this); }

std::int64_t PagedKv::seen(std::int64_t row) const {
  return rows_.at(static_cast<std::size_t>(row)).seen;
}

double PagedKv::kept(std::int64_t row) const {
  std::int64_t n = 0;
  for (const auto& head : rows_.at(static_cast<std::size_t>(row)).heads) n += head.entries();
  auto kept = shape_.heads ? static_cast<double>(n) / static_cast<double>(shape_.heads) : 0.0;
  if (!paged()) kept += static_cast<double>(live_.valid.select(0, row).sum().item<std::int64_t>());
  return kept;
}

std::optional<std::vector<EntryRange>> PagedKv::readable(std::int64_t r, std::int64_t h) const {
  if (!paged() || (plan_ && plan_->select())) return std::nullopt;
  std::vector<EntryRange> out;
  for (const auto& run :
       rows_.at(static_cast<std::size_t>(r)).heads.at(static_cast<std::size_t>(h)).runs) {
    const auto indices =
        std::span(run.page->indices)
            .subspan(static_cast<std::size_t>(run.begin), static_cast<std::size_t>(run.count));
    for (const auto i : indices) {
      if (!out.empty() && out.back().end == i) {
        ++out.back().end;
      } else {
        out.push_back({i, i + 1});
      }
    }
  }
  return out;
}

std::int64_t PagedKv::allocated_bytes() const {
  std::set<const Page*> pages;
  for (const auto& row : rows_) {
    for (const auto& head : row.heads) {
      for (const auto& run : head.runs) pages.insert(run.page.get());
    }
  }
  std::int64_t bytes = paged() ? 0 : static_cast<std::int64_t>(live_.k.nbytes() + live_.v.nbytes());
  for (const auto* page : pages) {
    bytes += page->encoded() ? page->code_bytes
                             : kPageEntries * (held_channels(*page) + shape_.value) *
                                   static_cast<std::int64_t>(c10::elementSize(page->number_type()));
    if (page->summary && plan_ && plan_->select())
      bytes += plan_->select()->summary_size(layer_, shape_.key) * 4;
  }
  for (const auto& row : rows_) {
    for (const auto& head : row.heads)
      bytes += static_cast<std::int64_t>(head.homes.size() * sizeof(float));
  }
  return bytes;
}

std::unique_ptr<StateStore> PagedKv::select(const std::vector<std::int64_t>& which) const {
  auto out = std::make_unique<PagedKv>(*this);
  out->rows_.clear();
  for (const auto row : which) out->rows_.push_back(rows_.at(static_cast<std::size_t>(row)));
  if (!paged()) {
    const auto index = at::tensor(which, at::kLong);
    const auto take = [&](const at::Tensor& x) {
      return x.defined() ? x.index_select(0, index) : x;
    };
    out->live_ = {take(live_.k), take(live_.v), take(live_.positions), take(live_.valid),
                  take(live_.segments)};
  }
  return out;
}

std::unique_ptr<StateStore> PagedKv::concat(const std::vector<const StateStore*>& others) const {
  auto out = std::make_unique<PagedKv>(*this);
  std::vector<Live> lives{live_};
  for (const auto* store : others) {
    const auto* other = dynamic_cast<const PagedKv*>(store);
    if (other && print(other->plan_ ? other->plan_->chain() : Chain{}) !=
                     print(plan_ ? plan_->chain() : Chain{})) {
      throw Error(Errc::mismatch, "states kept by different KV plans cannot be joined");
    }
    if (!other || other->shape_.heads != shape_.heads || other->shape_.key != shape_.key ||
        other->shape_.value != shape_.value || other->paged() != paged()) {
      throw Error(Errc::mismatch, "states of different models cannot be joined");
    }
    if (plan_ && plan_->cuts_at_prompt_end() && other->prompt_finished_ != prompt_finished_)
      throw Error(Errc::mismatch, "states inside and behind their prompts cannot be joined");
    if (other->protected_ != protected_)
      throw Error(Errc::mismatch,
                  "states that protect different numbers of tokens cannot be joined");
    if (out->group_ == 0) {
      out->group_ = other->group_;
      out->scale_ = other->scale_;
    } else if (other->group_ != 0 && other->group_ != out->group_) {
      throw Error(Errc::mismatch, "states of different models cannot be joined");
    }
    out->rows_.insert(out->rows_.end(), other->rows_.begin(), other->rows_.end());
    lives.push_back(other->live_);
  }
  if (paged()) return out;
  std::int64_t N = 0;
  for (const auto& live : lives) N = std::max(N, live.k.size(2));
  // Shorter rows are padded with entries that nobody sees.
  const auto pad = [&](const at::Tensor& x, std::int64_t dim) {
    auto sizes = x.sizes().vec();
    sizes[static_cast<std::size_t>(dim)] = N - x.size(dim);
    return at::cat({x, at::zeros(sizes, x.options())}, dim);
  };
  const bool segmented = std::any_of(lives.begin(), lives.end(),
                                     [](const Live& live) { return live.segments.defined(); });
  std::array<std::vector<at::Tensor>, 5> parts;
  for (const auto& live : lives) {
    parts[0].push_back(pad(live.k, 2));
    parts[1].push_back(pad(live.v, 2));
    parts[2].push_back(pad(live.positions, 1));
    parts[3].push_back(pad(live.valid, 1));
    if (segmented)
      parts[4].push_back(pad(
          live.segments.defined() ? live.segments : at::full_like(live.positions, kNoSegment), 1));
  }
  out->live_ = {at::cat(parts[0]), at::cat(parts[1]), at::cat(parts[2]), at::cat(parts[3]),
                segmented ? at::cat(parts[4]) : at::Tensor()};
  return out;
}

namespace kv::paged_kv {

void enrol(Registry& r) {
  r.add<StateStore, PagedKv>("paged_kv", "paged, ragged keys and values");
  r.add<KvStore, PagedKv>("paged", "reference-counted pages, a list for every row and head");
}

}  // namespace kv::paged_kv

}  // namespace mneme
