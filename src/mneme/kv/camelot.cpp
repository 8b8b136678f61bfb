// camelot: a window, and behind it a fixed number of slots, each the mean of the tokens that were like it.
//
// per KV head, over windows of L tokens with keys k_i and values v_i, i = 0 .. L-1, unturned:
//   m(i)  = argmax_m cos(k_i, K_m) over the slots as they are when the window begins
//   read    token i attends to the slots m(0) .. m(i), each once, and to tokens 0 .. i of its window
//   write   once the window is full: where cos(k_i, K_m) > rho, m = m(i):
//             K_m <- (c_m K_m + k_i) / (c_m + 1),  V_m likewise,  c_m <- c_m + 1;
//           then the others, in order, each in place of the slot that was longest not touched: K = k_i, V = v_i, c = 1
//
// spec      camelot(slots=2048, rho=0.8, window=128, place=before, replace=oldest, mass=false)
// holds     slots (K + V) + 3 numbers a head, and 5 window K: never more, however long the text
// cost      O(L (L + retrieved) K) for a window's attention, O(slots K) a token to find its slot
// needs     keys unturned; text may grow past the model's context
// source    He et al. 2024, arXiv:2402.13449
// departs   token i reads what tokens up to i retrieve, not what the whole window does: so no token looks ahead, and a
//           window may come in any pieces. Slots stand right before the window, the one found first next to it (place
//           before), or at position 0. rho and the similarity are ours: the paper does not give them
#include "mneme/core/generator.h"
#include "mneme/core/registry.h"
#include "mneme/core/sole_owner.h"
#include "mneme/kernels/attend.h"
#include "mneme/kv/plan.h"
#include "mneme/kv/retrieve_made.h"
#include "mneme/mixers/attention/products.h"
#include "mneme/mixers/kv_store.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <fmt/format.h>
#include <limits>
#include <set>

namespace mneme::kv::camelot {

using kernels::kPageEntries;

struct Options {
  std::int64_t slots = 2048;
  double rho = 0.8;
  std::int64_t window = 128;
  std::string place = "before", replace = "oldest";
  bool mass = false;
};

class CamelotKv final : public KvStore {
 public:
  CamelotKv() = default;  ///< to be loaded into
  CamelotKv(const KvShape& shape, std::int64_t layer, std::int64_t rows, const Options& o,
            std::string spec)
      : shape_(shape), layer_(layer), o_(o), spec_(std::move(spec)) {
    if (shape.key != shape.value || shape.key % 8 != 0 || shape.key > kernels::kMostHeadWidth) {
      throw Error(
          Errc::unsupported,
          fmt::format("kv: 'camelot' takes keys and values of one width, a multiple of 8 up "
                      "to {}, not {} and {}",
                      kernels::kMostHeadWidth, shape.key, shape.value));
    }
    rows_.resize(static_cast<std::size_t>(rows), fresh_row());
  }

  [[nodiscard]] std::string_view name() const override { return "camelot_kv"; }
  [[nodiscard]] std::int64_t rows() const override {
    return static_cast<std::int64_t>(rows_.size());
  }
  [[nodiscard]] std::unique_ptr<StateStore> fork() const override {
    return std::make_unique<CamelotKv>(*this);
  }
  void save(ByteWriter& out) const override;
  void load(ByteReader& in) override;
  void rewind(std::int64_t n) override;
  [[nodiscard]] std::unique_ptr<StateStore> select(
      const std::vector<std::int64_t>& which) const override {
    auto out = std::make_unique<CamelotKv>(*this);
    out->rows_.clear();
    for (const auto row : which) out->rows_.push_back(rows_.at(static_cast<std::size_t>(row)));
    return out;
  }
  [[nodiscard]] std::unique_ptr<StateStore> concat(
      const std::vector<const StateStore*>& others) const override {
    auto out = std::make_unique<CamelotKv>(*this);
    for (const auto* store : others) {
      const auto* other = dynamic_cast<const CamelotKv*>(store);
      if (other && other->spec_ != spec_)
        throw Error(Errc::mismatch, "states kept by different KV plans cannot be joined");
      if (!other || other->shape_.heads != shape_.heads || other->shape_.key != shape_.key)
        throw Error(Errc::mismatch, "states of different models cannot be joined");
      out->rows_.insert(out->rows_.end(), other->rows_.begin(), other->rows_.end());
    }
    return out;
  }
  void reset(const std::vector<bool>& which) override {
    for (std::size_t b = 0; b < which.size() && b < rows_.size(); ++b) {
      if (which[b]) rows_[b] = fresh_row();
    }
  }
  void detach() override {}

  void append(const at::Tensor& keys, const at::Tensor& values, const Call& call) override;
  void settle() override;
  [[nodiscard]] Partial attend(const at::Tensor& queries, const Call& call, double scale,
                               bool want_lse) const override;
  [[nodiscard]] KvSlice read(std::int64_t row, std::int64_t begin, std::int64_t end) const override;
  void place(std::int64_t row, const KvSlice& slice, std::int64_t position,
             Compute compute) override;
  void use(std::shared_ptr<const KvPlan> plan, std::int64_t layer, std::int64_t layers) override;
  [[nodiscard]] std::optional<std::int64_t> farthest() const override {
    return o_.window + o_.slots;
  }
  [[nodiscard]] const KvShape& shape() const override { return shape_; }
  [[nodiscard]] std::int64_t seen(std::int64_t row) const override {
    return rows_.at(static_cast<std::size_t>(row)).seen;
  }
  [[nodiscard]] double kept(std::int64_t row) const override;
  [[nodiscard]] std::int64_t allocated_bytes() const override;
  [[nodiscard]] const std::string& spec() const { return spec_; }

 private:
  /// Of all heads: number d of slot m of head h at [(h slots + m) K + d].
  struct Slots {
    std::vector<float> keys, values, counts, lengths;  ///< lengths: of the keys
    std::vector<std::int64_t> touched;                 ///< index of the last token; -1: empty
  };
  /// The tokens since the last write, and the slots that they found, both [H,window,K].
  struct Window {
    std::vector<float> plain, turned, values, slot_keys, slot_values, slot_mass;
    std::vector<std::int64_t> nearest;  ///< [H,window] each token's slot, -1: there is none
    std::vector<float> likeness;        ///< [H,window] its cosine
  };
  /// A slot that is read from token `since` of the window on.
  struct Found {
    std::int64_t slot, since;
  };
  struct Row {
    std::shared_ptr<Slots> slots;
    std::shared_ptr<Window> window;
    std::vector<std::vector<Found>> found;  ///< of each head, in the order in which they were
    std::int64_t seen = 0, in_window = 0;
  };

  [[nodiscard]] Row fresh_row() const {
    Row row;
    row.slots = std::make_shared<Slots>();
    const auto n = static_cast<std::size_t>(shape_.heads * o_.slots),
               d = static_cast<std::size_t>(shape_.key);
    row.slots->keys.resize(n * d);
    row.slots->values.resize(n * d);
    row.slots->counts.resize(n);
    row.slots->lengths.resize(n);
    row.slots->touched.assign(n, -1);
    row.window = std::make_shared<Window>();
    const auto w = static_cast<std::size_t>(shape_.heads * o_.window);
    for (auto* x : {&row.window->plain, &row.window->turned, &row.window->values,
                    &row.window->slot_keys, &row.window->slot_values})
      x->resize(w * d);
    row.window->slot_mass.resize(w);
    row.window->nearest.assign(w, -1);
    row.window->likeness.resize(w);
    row.found.resize(static_cast<std::size_t>(shape_.heads));
    return row;
  }
  template <class T>
  static void own(std::shared_ptr<T>& x) {
    if (!sole_owner(x)) x = std::make_shared<T>(*x);
  }

  /// n tokens that fit the window: keys and values [n,H,K].
  void take(Row& row, std::int64_t n, const float* keys, const float* values) const;
  void take_pending(Row& row, std::int64_t b, std::int64_t begin, std::int64_t n) const;
  /// The slots that the last n tokens of the window find.
  void find_slots(Row& row, std::int64_t n) const;
  /// Adds the slots of n tokens from `begin` on to those that are read.
  void note_found(Row& row, std::int64_t begin, std::int64_t n) const;
  void put_found(Row& row, std::int64_t head, std::int64_t place) const;
  /// Writes a full window into the slots and empties it.
  void write(Row& row) const;

  KvShape shape_;
  std::int64_t layer_ = 0;
  Options o_;
  std::string spec_;
  struct Pending {
    at::Tensor keys, values;  ///< [B,H,T,K] f32
    std::vector<std::int64_t> lengths;
  };
  // A token enters its row when it attends: the window is then the one that it sees.
  mutable std::vector<Row> rows_;
  mutable Pending pending_;
};

void CamelotKv::append(const at::Tensor& keys, const at::Tensor& values, const Call& call) {
  if (keys.size(0) != rows())
    throw Error(Errc::invalid, fmt::format("the state holds {} sequences, the call brings {}",
                                           rows(), keys.size(0)));
  if (c10::GradMode::is_enabled() && (keys.requires_grad() || values.requires_grad()))
    throw Error(Errc::unsupported,
                fmt::format("kv: '{}' carries no gradients: train without it", spec_));
  if (pending_.keys.defined()) settle();
  pending_ = {keys.to(at::kCPU, at::kFloat), values.to(at::kCPU, at::kFloat), call.lengths};
}

void CamelotKv::settle() {
  if (pending_.keys.defined()) {
    const auto T = pending_.keys.size(2);
    for (std::int64_t b = 0; b < rows(); ++b) {
      const auto n = pending_.lengths.empty() ? T : pending_.lengths[static_cast<std::size_t>(b)];
      auto& row = rows_[static_cast<std::size_t>(b)];
      for (std::int64_t t = 0; t < n;) {
        const auto step = std::min(n - t, o_.window - row.in_window);
        take_pending(row, b, t, step);
        if (row.in_window == o_.window) write(row);
        t += step;
      }
    }
  }
  pending_ = {};
}

void CamelotKv::take_pending(Row& row, std::int64_t b, std::int64_t begin, std::int64_t n) const {
  const auto part = [&](const at::Tensor& x) {
    return x[b].narrow(1, begin, n).transpose(0, 1).contiguous();
  };
  const auto k = part(pending_.keys), v = part(pending_.values);
  take(row, n, k.const_data_ptr<float>(), v.const_data_ptr<float>());
  find_slots(row, n);
}

void CamelotKv::take(Row& row, std::int64_t n, const float* keys, const float* values) const {
  const auto H = shape_.heads, d = shape_.key, L = o_.window, begin = row.in_window;
  MNEME_ASSERT(begin + n <= L);
  own(row.window);
  auto& window = *row.window;
  std::vector<std::int64_t> positions(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) positions[static_cast<std::size_t>(i)] = L + begin + i;
  for (std::int64_t h = 0; h < H; ++h) {
    const auto at = (h * L + begin) * d;
    for (std::int64_t i = 0; i < n; ++i) {
      std::copy_n(keys + (i * H + h) * d, d, window.plain.data() + at + i * d);
      std::copy_n(values + (i * H + h) * d, d, window.values.data() + at + i * d);
    }
    std::copy_n(window.plain.data() + at, n * d, window.turned.data() + at);
    if (shape_.rope) shape_.rope->rotate(window.turned.data() + at, 1, n, positions.data());
  }
  row.in_window += n;
  row.seen += n;
}

void CamelotKv::find_slots(Row& row, std::int64_t n) const {
  const auto H = shape_.heads, d = shape_.key, L = o_.window, M = o_.slots,
             begin = row.in_window - n;
  if (M == 0) return;
  auto& window = *row.window;
  const auto& slots = *row.slots;
  for (std::int64_t h = 0; h < H; ++h) {
    auto* keys = window.plain.data() + (h * L + begin) * d;
    const auto products =
        at::mm(at::from_blob(keys, {n, d}, at::kFloat),
               at::from_blob(const_cast<float*>(slots.keys.data()) + h * M * d, {M, d}, at::kFloat)
                   .t())
            .contiguous();
    for (std::int64_t i = 0; i < n; ++i) {
      float square = 0;
      for (std::int64_t j = 0; j < d; ++j) square += keys[i * d + j] * keys[i * d + j];
      const auto length = std::max(std::sqrt(square), 1e-20F);
      const auto* product = products.const_data_ptr<float>() + i * M;
      std::int64_t nearest = -1;
      float likeness = -2;
      for (std::int64_t m = 0; m < M; ++m) {
        const auto at = static_cast<std::size_t>(h * M + m);
        if (slots.touched[at] < 0) continue;
        const auto cosine = product[m] / (length * std::max(slots.lengths[at], 1e-20F));
        if (cosine > likeness) {
          likeness = cosine;
          nearest = m;
        }
      }
      const auto at = static_cast<std::size_t>(h * L + begin + i);
      window.nearest[at] = nearest;
      window.likeness[at] = likeness;
    }
  }
  note_found(row, begin, n);
}

void CamelotKv::note_found(Row& row, std::int64_t begin, std::int64_t n) const {
  for (std::int64_t h = 0; h < shape_.heads; ++h) {
    auto& found = row.found[static_cast<std::size_t>(h)];
    for (auto i = begin; i < begin + n; ++i) {
      const auto slot = row.window->nearest[static_cast<std::size_t>(h * o_.window + i)];
      const auto is_it = [&](const Found& f) { return f.slot == slot; };
      if (slot < 0 || std::any_of(found.begin(), found.end(), is_it)) continue;
      found.push_back({slot, i});
      put_found(row, h, static_cast<std::int64_t>(found.size()) - 1);
    }
  }
}

void CamelotKv::put_found(Row& row, std::int64_t h, std::int64_t place) const {
  const auto d = shape_.key, L = o_.window, M = o_.slots;
  const auto slot = row.found[static_cast<std::size_t>(h)][static_cast<std::size_t>(place)].slot;
  const auto from = h * M + slot, to = h * L + place;
  auto& window = *row.window;
  std::copy_n(row.slots->keys.data() + from * d, d, window.slot_keys.data() + to * d);
  std::copy_n(row.slots->values.data() + from * d, d, window.slot_values.data() + to * d);
  window.slot_mass[static_cast<std::size_t>(to)] =
      o_.mass ? std::log(row.slots->counts[static_cast<std::size_t>(from)]) : 0.F;
  const auto position = L - 1 - place;
  if (shape_.rope && o_.place == "before")
    shape_.rope->rotate(window.slot_keys.data() + to * d, 1, 1, &position);
}

void CamelotKv::write(Row& row) const {
  const auto H = shape_.heads, d = shape_.key, L = o_.window, M = o_.slots,
             first = row.seen - row.in_window;
  if (M > 0) own(row.slots);
  auto& slots = *row.slots;
  const auto& window = *row.window;
  for (std::int64_t h = 0; h < H && M > 0; ++h) {
    const auto put = [&](std::int64_t slot, std::int64_t i, float count) {
      const auto at = static_cast<std::size_t>(h * M + slot);
      float square = 0;
      for (std::int64_t j = 0; j < d; ++j) {
        auto& k = slots.keys[at * static_cast<std::size_t>(d) + static_cast<std::size_t>(j)];
        auto& v = slots.values[at * static_cast<std::size_t>(d) + static_cast<std::size_t>(j)];
        const auto from = static_cast<std::size_t>((h * L + i) * d + j);
        k = (count * k + window.plain[from]) / (count + 1);
        v = (count * v + window.values[from]) / (count + 1);
        square += k * k;
      }
      slots.counts[at] = count + 1;
      slots.lengths[at] = std::sqrt(square);
      slots.touched[at] = first + i;
    };
    std::vector<std::int64_t> novel;
    for (std::int64_t i = 0; i < L; ++i) {
      const auto at = static_cast<std::size_t>(h * L + i);
      if (window.nearest[at] >= 0 && window.likeness[at] > o_.rho) {
        put(window.nearest[at], i,
            slots.counts[static_cast<std::size_t>(h * M + window.nearest[at])]);
      } else {
        novel.push_back(i);
      }
    }
    for (const auto i : novel) {
      const auto begin = slots.touched.begin() + h * M;
      auto slot = std::min_element(begin, begin + M) - begin;
      if (o_.replace == "random" && *(begin + slot) >= 0)
        slot = static_cast<std::int64_t>(
            Generator(static_cast<std::uint64_t>((first + i) * 8191 + h * 127 + layer_)).next() %
            static_cast<std::uint64_t>(M));
      put(slot, i, 0);
    }
  }
  row.in_window = 0;
  for (auto& found : row.found) found.clear();
}

Partial CamelotKv::attend(const at::Tensor& queries, const Call& call, double scale,
                          bool want_lse) const {
  const auto B = queries.size(0), Hq = queries.size(1), T = queries.size(2), d = queries.size(3),
             H = shape_.heads, G = Hq / H, L = o_.window;
  if (call.pattern.window > 0 || call.pattern.by_segment) {
    throw Error(
        Errc::unsupported,
        fmt::format("kv: '{}' takes no layer with a window of its own, and no segments", spec_));
  }
  if (B != rows() || d != shape_.key || Hq % H != 0)
    throw Error(Errc::invalid,
                fmt::format("queries [{},{},{},{}] do not fit {} sequences of {} heads of {}", B,
                            Hq, T, d, rows(), H, shape_.key));
  const bool writes = pending_.keys.defined();
  MNEME_ASSERT(!writes || pending_.keys.size(2) == T);  // a layer attends to what it appended
  const auto q = queries.to(at::kCPU, at::kFloat);
  auto out = at::zeros({B, T, Hq, d}, q.options());
  const auto nothing = -std::numeric_limits<float>::infinity();
  at::Tensor lse;
  if (want_lse) lse = at::full({B, Hq, T}, nothing, q.options());
  for (std::int64_t b = 0; b < B; ++b) {
    auto& row = rows_[static_cast<std::size_t>(b)];
    const auto n = call.length(b, T);
    for (std::int64_t t = 0; t < n;) {
      const auto first = row.in_window;
      const auto step = writes ? std::min(n - t, L - first) : n - t;
      if (writes) take_pending(row, b, t, step);
      auto turned = q[b].narrow(1, t, step)
                        .transpose(0, 1)
                        .clone(at::MemoryFormat::Contiguous);  // [step,Hq,K]
      std::vector<std::int64_t> positions(static_cast<std::size_t>(step)),
          places(static_cast<std::size_t>(step));
      for (std::int64_t i = 0; i < step; ++i) {
        places[static_cast<std::size_t>(i)] = first + i;
        positions[static_cast<std::size_t>(i)] = L + first + i;
      }
      if (shape_.rope)
        shape_.rope->rotate(turned.mutable_data_ptr<float>(), Hq, step, d, Hq * d,
                            positions.data());
      std::vector<float> chunk_lse(static_cast<std::size_t>(Hq * step));
      std::deque<std::array<std::int64_t, kPageEntries>> since;
      std::vector<std::vector<kernels::PageView>> pages(static_cast<std::size_t>(H));
      std::vector<kernels::AttendTask> tasks;
      for (std::int64_t h = 0; h < H; ++h) {
        const auto& found = row.found[static_cast<std::size_t>(h)];
        const auto add = [&](const std::vector<float>& keys, const std::vector<float>& values,
                             std::int64_t entries, const float* mass, auto from) {
          for (std::int64_t i = 0; i < entries; i += kPageEntries) {
            auto& seen_from = since.emplace_back();
            kernels::PageView page{};
            page.entries = static_cast<std::int32_t>(std::min(kPageEntries, entries - i));
            for (std::int64_t j = 0; j < page.entries; ++j)
              seen_from[static_cast<std::size_t>(j)] = from(i + j);
            page.k = keys.data() + (h * L + i) * d;
            page.v = values.data() + (h * L + i) * d;
            page.positions = seen_from.data();
            page.log_mass = mass == nullptr ? nullptr : mass + h * L + i;
            page.type = kernels::KvType::f32;
            pages[static_cast<std::size_t>(h)].push_back(page);
          }
        };
        add(row.window->turned, row.window->values, row.in_window, nullptr,
            [](std::int64_t i) { return i; });
        add(row.window->slot_keys, row.window->slot_values, static_cast<std::int64_t>(found.size()),
            o_.mass ? row.window->slot_mass.data() : nullptr,
            [&](std::int64_t i) { return found[static_cast<std::size_t>(i)].since; });
        kernels::AttendTask task{};
        task.q = turned.const_data_ptr<float>() + h * G * d;
        task.heads = G;
        task.T = step;
        task.q_head_stride = d;
        task.q_time_stride = Hq * d;
        task.q_positions = places.data();
        task.pages = pages[static_cast<std::size_t>(h)];
        task.out = out.mutable_data_ptr<float>() + ((b * T + t) * Hq + h * G) * d;
        task.out_head_stride = d;
        task.out_time_stride = Hq * d;
        task.lse = chunk_lse.data() + h * G * step;
        tasks.push_back(task);
      }
      kernels::attend(tasks, d, static_cast<float>(scale), {true, 0},
                      attention_products(call.compute));
      for (std::int64_t h = 0; h < Hq && want_lse; ++h)
        std::copy_n(chunk_lse.data() + h * step, step,
                    lse.mutable_data_ptr<float>() + (b * Hq + h) * T + t);
      if (writes && row.in_window == L) write(row);
      t += step;
    }
  }
  pending_ = {};
  return {out.transpose(1, 2), lse};
}

KvSlice CamelotKv::read(std::int64_t r, std::int64_t begin, std::int64_t end) const {
  const auto& row = rows_.at(static_cast<std::size_t>(r));
  if (begin < 0 || begin > end || end > row.seen)
    throw Error(Errc::invalid,
                fmt::format("entries {} to {} of a row that has taken {}", begin, end, row.seen));
  const auto first = row.seen - row.in_window, H = shape_.heads, d = shape_.key, n = end - begin;
  if (begin < first && n > 0)
    throw Error(Errc::unsupported, "entries before the window were merged with others");
  KvSlice out{at::empty({H, n, d}), at::empty({H, n, d})};
  for (std::int64_t h = 0; h < H && n > 0; ++h) {
    const auto at = (h * o_.window + begin - first) * d;
    std::copy_n(row.window->plain.data() + at, n * d, out.keys[h].mutable_data_ptr<float>());
    std::copy_n(row.window->values.data() + at, n * d, out.values[h].mutable_data_ptr<float>());
  }
  return out;
}

void CamelotKv::place(std::int64_t r, const KvSlice& slice, std::int64_t /*position*/,
                      Compute /*compute*/) {
  if (!slice.places.empty())
    throw Error(Errc::unsupported,
                "heads that hold entries of their own choice cannot be placed here");
  const auto fits = [&](const at::Tensor& x) {
    return x.dim() == 3 && x.size(0) == shape_.heads && x.size(2) == shape_.key;
  };
  if (!fits(slice.keys) || !fits(slice.values) || slice.keys.size(1) != slice.values.size(1))
    throw Error(Errc::mismatch,
                fmt::format("entries of another shape than {} heads of {} numbers cannot be placed "
                            "here",
                            shape_.heads, shape_.key));
  auto& row = rows_.at(static_cast<std::size_t>(r));
  const auto n = slice.keys.size(1);
  for (std::int64_t t = 0; t < n;) {
    const auto step = std::min(n - t, o_.window - row.in_window);
    const auto part = [&](const at::Tensor& x) {
      return x.narrow(1, t, step).to(at::kFloat).transpose(0, 1).contiguous();
    };
    const auto k = part(slice.keys), v = part(slice.values);
    take(row, step, k.const_data_ptr<float>(), v.const_data_ptr<float>());
    find_slots(row, step);
    if (row.in_window == o_.window) write(row);
    t += step;
  }
}

void CamelotKv::use(std::shared_ptr<const KvPlan> plan, std::int64_t layer,
                    std::int64_t /*layers*/) {
  const auto is_own = [&](const Stage& stage) { return print(stage) == spec_; };
  if (!plan || std::none_of(plan->chain().begin(), plan->chain().end(), is_own)) {
    throw Error(Errc::unsupported,
                fmt::format("the KV plan '{}' is not the one that this state was made by: '{}'",
                            plan ? print(plan->chain()) : "", spec_));
  }
  layer_ = layer;
}

void CamelotKv::rewind(std::int64_t n) {
  for (const auto& row : rows_) {
    if (row.seen < n)
      throw Error(Errc::invalid,
                  fmt::format("rewind by {} tokens where a row has only {}", n, row.seen));
    if (row.in_window < n)
      throw Error(Errc::unsupported,
                  "tokens before the window were merged with others and cannot "
                  "be gone back to");
  }
  for (auto& row : rows_) {
    row.seen -= n;
    row.in_window -= n;
    for (auto& found : row.found)
      std::erase_if(found, [&](const Found& f) { return f.since >= row.in_window; });
  }
}

double CamelotKv::kept(std::int64_t r) const {
  const auto& row = rows_.at(static_cast<std::size_t>(r));
  const auto filled = std::count_if(row.slots->touched.begin(), row.slots->touched.end(),
                                    [](std::int64_t t) { return t >= 0; });
  return static_cast<double>(row.in_window) +
         static_cast<double>(filled) / static_cast<double>(shape_.heads);
}

std::int64_t CamelotKv::allocated_bytes() const {
  std::set<const void*> counted;
  std::int64_t bytes = 0;
  for (const auto& row : rows_) {
    const auto& s = *row.slots;
    const auto& w = *row.window;
    if (counted.insert(&s).second)
      bytes += static_cast<std::int64_t>(
          4 * (s.keys.size() + s.values.size() + s.counts.size() + s.lengths.size()) +
          8 * s.touched.size());
    if (counted.insert(&w).second)
      bytes += static_cast<std::int64_t>(4 * (w.plain.size() + w.turned.size() + w.values.size() +
                                              w.slot_keys.size() + w.slot_values.size() +
                                              w.slot_mass.size() + w.likeness.size()) +
                                         8 * w.nearest.size());
  }
  return bytes;
}

void CamelotKv::save(ByteWriter& out) const {
  write_made(out, spec_, shape_, layer_);
  out.value(static_cast<std::uint64_t>(rows_.size()));
  const auto numbers = [&](const auto& x) { out.raw(x.data(), x.size() * sizeof(x[0])); };
  for (const auto& row : rows_) {
    out.value(row.seen);
    out.value(row.in_window);
    const auto& s = *row.slots;
    numbers(s.keys);
    numbers(s.values);
    numbers(s.counts);
    numbers(s.touched);
    for (std::int64_t h = 0; h < shape_.heads; ++h) {
      for (const auto* x : {&row.window->plain, &row.window->values})
        out.raw(x->data() + h * o_.window * shape_.key,
                static_cast<std::size_t>(row.in_window * shape_.key) * sizeof(float));
      const auto n = static_cast<std::size_t>(row.in_window);
      out.raw(row.window->nearest.data() + h * o_.window, n * sizeof(std::int64_t));
      out.raw(row.window->likeness.data() + h * o_.window, n * sizeof(float));
    }
  }
}

void CamelotKv::load(ByteReader& in) {
  const auto damaged = [] {
    return Error(Errc::corrupt,
                 "stored keys and values contradict themselves: the state is damaged");
  };
  constexpr std::int64_t kMost = 1 << 16, kFarthest = std::int64_t{1} << 48;
  const auto made = read_made(in);
  auto* store = dynamic_cast<CamelotKv*>(made.get());
  if (store == nullptr) throw damaged();
  *this = std::move(*store);
  const auto H = shape_.heads, d = shape_.key;
  if (o_.slots > kFarthest / (H * d * 16) || o_.window > kFarthest / (H * d * 16)) throw damaged();
  const auto rows = in.count(static_cast<std::uint64_t>(16 + H * o_.slots * (8 * d + 12)));
  for (std::uint64_t b = 0; b < rows; ++b) {
    const auto seen = in.value<std::int64_t>(), in_window = in.value<std::int64_t>();
    // A window is allocated whole: one that no text has filled so far is not believed.
    if (seen < 0 || seen > kFarthest || in_window < 0 || in_window > seen ||
        in_window >= o_.window || o_.window > kMost)
      throw damaged();
    auto row = fresh_row();
    const auto numbers = [&](auto& x) {
      const auto bytes = x.size() * sizeof(x[0]);
      if (bytes > 0) std::memcpy(x.data(), in.raw(bytes).data(), bytes);
    };
    auto& s = *row.slots;
    numbers(s.keys);
    numbers(s.values);
    numbers(s.counts);
    numbers(s.touched);
    for (std::size_t m = 0; m < s.touched.size(); ++m) {
      if (s.touched[m] < -1 || s.touched[m] >= seen) throw damaged();
      float square = 0;
      for (std::int64_t j = 0; j < d; ++j) {
        const auto k = s.keys[m * static_cast<std::size_t>(d) + static_cast<std::size_t>(j)];
        square += k * k;
      }
      s.lengths[m] = std::sqrt(square);
    }
    auto k = at::empty({H, in_window, d}), v = at::empty({H, in_window, d});
    auto nearest = row.window->nearest;
    auto likeness = row.window->likeness;
    for (std::int64_t h = 0; h < H; ++h) {
      for (auto* x : {&k, &v}) {
        const auto bytes = static_cast<std::size_t>(in_window * d) * sizeof(float);
        const auto from = in.raw(bytes);
        if (bytes > 0)
          std::memcpy(x->mutable_data_ptr<float>() + h * in_window * d, from.data(), bytes);
      }
      const auto n = static_cast<std::size_t>(in_window);
      const auto slots = in.raw(n * sizeof(std::int64_t)), cosines = in.raw(n * sizeof(float));
      if (n > 0) {
        std::memcpy(nearest.data() + h * o_.window, slots.data(), slots.size());
        std::memcpy(likeness.data() + h * o_.window, cosines.data(), cosines.size());
      }
    }
    row.seen = seen - in_window;
    k = k.transpose(0, 1).contiguous();
    v = v.transpose(0, 1).contiguous();
    take(row, in_window, k.const_data_ptr<float>(), v.const_data_ptr<float>());
    row.window->nearest = std::move(nearest);
    row.window->likeness = std::move(likeness);
    for (std::int64_t h = 0; h < H; ++h) {
      for (std::int64_t i = 0; i < in_window; ++i) {
        const auto slot = row.window->nearest[static_cast<std::size_t>(h * o_.window + i)];
        if (slot < -1 || slot >= o_.slots ||
            (slot >= 0 && s.touched[static_cast<std::size_t>(h * o_.slots + slot)] < 0))
          throw damaged();
      }
    }
    note_found(row, 0, in_window);
    rows_.push_back(std::move(row));
  }
}

class Camelot final : public RetrieveStage {
 public:
  using Options = camelot::Options;
  static void describe(Describe& d, Options& o) {
    d("slots", o.slots, within(0, 1 << 24), "slots of a head");
    d("rho", o.rho, "cosine above which a token joins its slot; above 1: none does");
    d("window", o.window, within(1, 1 << 16), "tokens between one write and the next");
    d("place", o.place, one_of({"before", "zero"}),
      "where slots stand: right before the window, or at position 0");
    d("replace", o.replace, one_of({"oldest", "random"}),
      "which slot a token overwrites that is like none");
    d("mass", o.mass, "a slot weighs as much as the tokens that joined in it");
  }
  explicit Camelot(const Options& o) : o_(o) {}

  [[nodiscard]] std::optional<std::int64_t> max_entries() const override {
    return o_.slots + o_.window;
  }
  [[nodiscard]] bool made(const KvStore& store) const override {
    const auto* own = dynamic_cast<const CamelotKv*>(&store);
    return own != nullptr && own->spec() == spec();
  }
  [[nodiscard]] std::unique_ptr<KvStore> store(const KvShape& shape, std::int64_t layer,
                                               std::int64_t rows) const override {
    return std::make_unique<CamelotKv>(shape, layer, rows, o_, spec());
  }

 private:
  [[nodiscard]] std::string spec() const { return print(canonical<Camelot>("camelot", o_)); }
  Options o_;
};

void enrol(Registry& r) {
  r.add<KvStage, Camelot>("camelot", "a window, and slots in which tokens of one kind are merged",
                          "camelot-2024");
  r.add<StateStore, CamelotKv>("camelot_kv", "a window, and slots in which tokens are merged");
}

}  // namespace mneme::kv::camelot
