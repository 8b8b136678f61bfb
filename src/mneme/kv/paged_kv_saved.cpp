// PagedKv as bytes: what `save` writes and `load` believes.
#include "mneme/core/error.h"
#include "mneme/core/registry.h"
#include "mneme/kv/paged_kv.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

namespace mneme {
namespace {

using kernels::kPageEntries;

/// How a saved page holds its entries.
enum : std::uint8_t { kWhole = 0, kCoded = 1, kNarrow = 2 };

/// What else a saved store holds.
enum : std::uint8_t {
  kLive = 1,
  kObserved = 2,
  kMoved = 4,
  kOfLayers = 8,
  kProtected = 16,
  kFinished = 32,
  kReadAgain = 64
};

}  // namespace

void PagedKv::save(ByteWriter& out) const {
  out.value(shape_.heads);
  out.value(shape_.key);
  out.value(shape_.value);
  out.value(shape_.rope ? shape_.rope->theta() : 0.0);
  out.value(static_cast<std::uint8_t>(shape_.rope && shape_.rope->pairs() == RopePairs::adjacent));
  out.string(plan_ ? print(plan_->chain()) : "");
  out.value(layer_);
  out.value(static_cast<std::uint64_t>(rows_.size()));
  for (const auto& row : rows_) {
    out.value(row.seen);
    out.value(static_cast<std::uint8_t>(row.dropped));
    out.value(static_cast<std::uint64_t>(row.segments.size()));
    out.raw(row.segments.data(), row.segments.size() * 8);
    for (const auto& head : row.heads) {
      out.value(static_cast<std::uint64_t>(head.runs.size()));
      for (const auto& run : head.runs) {
        const auto& page = *run.page;
        const bool coded = page.encoded();
        out.value(static_cast<std::uint8_t>(coded ? kCoded : page.channels ? kNarrow : kWhole));
        out.value(run.begin);
        out.value(run.count);
        out.value(page.filled);
        // An encoded page is kept whole; of others only the run's own entries are written, which go back to their places.
        const auto first = coded ? 0 : run.begin, n = coded ? page.filled : run.count;
        out.raw(page.positions.data() + first, static_cast<std::size_t>(n) * 8);
        for (std::int64_t i = first; i < first + n; ++i)
          out.value(static_cast<std::int64_t>(page.indices[static_cast<std::size_t>(i)]));
        if (coded) {
          out.string(page.code());
        } else {
          if (page.channels)
            out.string(
                {reinterpret_cast<const char*>(page.channels->data()), page.channels->size()});
          const auto [k, v] = held(page);
          out.tensor(k.narrow(0, first, n));
          out.tensor(v.narrow(0, first, n));
        }
      }
    }
  }
  const bool observed = group_ > 0;
  const auto any_has = [&](std::vector<float> Head::* numbers) {
    return std::any_of(rows_.begin(), rows_.end(), [&](const Row& row) {
      return std::any_of(row.heads.begin(), row.heads.end(),
                         [&](const Head& head) { return !(head.*numbers).empty(); });
    });
  };
  const bool moved = any_has(&Head::homes), read_again = any_has(&Head::again);
  out.value(static_cast<std::uint8_t>(
      (paged() ? 0 : kLive) | (observed ? kObserved : 0) | (moved ? kMoved : 0) |
      (plan_ ? kOfLayers : 0) | (protected_ > 0 ? kProtected : 0) |
      (prompt_finished_ ? kFinished : 0) | (read_again ? kReadAgain : 0)));
  if (plan_) out.value(layers_);
  if (protected_ > 0) out.value(protected_);
  if (!paged()) {
    for (const auto* x : {&live_.k, &live_.v, &live_.positions, &live_.valid}) out.tensor(*x);
    out.value(static_cast<std::uint8_t>(live_.segments.defined()));
    if (live_.segments.defined()) out.tensor(live_.segments);
  }
  const auto list = [&](const auto& x) {
    out.value(static_cast<std::uint64_t>(x.size()));
    out.raw(x.data(), x.size() * sizeof(x[0]));
  };
  if (moved) {
    for (const auto& row : rows_) {
      for (const auto& head : row.heads) list(head.homes);
    }
  }
  if (read_again) {
    for (const auto& row : rows_) {
      out.value(row.read_again);
      for (const auto& head : row.heads) list(head.again);
    }
  }
  if (!observed) return;
  out.value(group_);
  out.value(scale_);
  for (const auto& row : rows_) {
    list(row.tokens);
    list(row.queries);
    list(row.query_positions);
    for (const auto& head : row.heads) list(head.sums);
  }
}

void PagedKv::load(ByteReader& in) {
  const auto damaged = [] {
    return Error(Errc::corrupt,
                 "stored keys and values contradict themselves: the state is damaged");
  };
  shape_ = {};
  shape_.heads = in.value<std::int64_t>();
  shape_.key = in.value<std::int64_t>();
  shape_.value = in.value<std::int64_t>();
  constexpr std::int64_t kMost = 1 << 16;
  if (shape_.heads < 1 || shape_.heads > kMost || shape_.key < 1 || shape_.key > kMost ||
      shape_.value < 1 || shape_.value > kMost)
    throw damaged();
  const auto theta = in.value<double>();
  const auto adjacent = in.value<std::uint8_t>();
  if (!(theta >= 0) || !std::isfinite(theta)) throw damaged();
  if (theta > 0)
    shape_.rope = std::make_shared<Rope>(shape_.key, theta,
                                         adjacent ? RopePairs::adjacent : RopePairs::halves);
  const auto chain = in.string();
  plan_ = chain.empty() ? nullptr : std::make_shared<KvPlan>(parse_chain(chain));
  find_needs();
  layer_ = in.value<std::int64_t>();
  rows_.assign(in.count(static_cast<std::uint64_t>(17 + 8 * shape_.heads)), {});
  constexpr std::int64_t kFarthest =
      std::int64_t{1} << 48;  // no position is farther, and sums of two stay in range
  for (auto& row : rows_) {
    row.seen = in.value<std::int64_t>();
    row.dropped = in.value<std::uint8_t>() != 0;
    row.segments.resize(in.count(8));
    if (row.seen < 0 || row.seen > kMostTokens ||
        (!row.segments.empty() && static_cast<std::int64_t>(row.segments.size()) > row.seen))
      throw damaged();
    if (!row.segments.empty())
      std::memcpy(row.segments.data(), in.raw(row.segments.size() * 8).data(),
                  row.segments.size() * 8);
    row.heads.resize(static_cast<std::size_t>(shape_.heads));
    for (auto& head : row.heads) {
      head.runs.resize(in.count(13));
      std::int64_t before = -1;  // entries lie in the order in which they came
      for (auto& run : head.runs) {
        run.page = make_page();
        auto& page = *run.page;
        const auto form = in.value<std::uint8_t>();
        const bool coded = form == kCoded;
        if (form > kNarrow) throw damaged();
        run.begin = in.value<std::int32_t>();
        run.count = in.value<std::int32_t>();
        page.filled = in.value<std::int32_t>();
        if (page.filled < 1 || page.filled > kPageEntries || run.begin < 0 || run.count < 1 ||
            run.begin > page.filled - run.count)
          throw damaged();
        const auto first = static_cast<std::size_t>(coded ? 0 : run.begin),
                   n = static_cast<std::size_t>(coded ? page.filled : run.count) * 8;
        std::memcpy(page.positions.data() + first, in.raw(n).data(), n);
        for (auto at = first; at < first + n / 8; ++at) {
          const auto index = in.value<std::int64_t>();
          if (index < 0 || index >= kMostTokens) throw damaged();
          page.indices[at] = static_cast<std::int32_t>(index);
        }
        for (auto i = run.begin; i < run.begin + run.count; ++i) {
          const auto at = static_cast<std::size_t>(i);
          if (page.indices[at] <= before || page.indices[at] >= row.seen ||
              page.positions[at] < -kFarthest || page.positions[at] > kFarthest)
            throw damaged();
          if (!row.segments.empty() &&
              page.indices[at] >= static_cast<std::int64_t>(row.segments.size()))
            throw damaged();
          before = page.indices[at];
          page.put(i, page.positions[at], before);
        }
        if (coded) {
          page.hold_code(in.string());
          if (!plan_ || !plan_->codec() ||
              page.code_bytes != plan_->codec()->bytes(1, page.filled, shape_.key, shape_.value))
            throw damaged();
          continue;
        }
        auto width = shape_.key;
        if (form == kNarrow) {
          const auto held = in.string();
          std::vector<std::uint8_t> channels(held.begin(), held.end());
          for (std::size_t c = 0; c < channels.size(); ++c) {
            if (channels[c] >= shape_.key || (c > 0 && channels[c] <= channels[c - 1]))
              throw damaged();
          }
          if (channels.empty()) throw damaged();
          width = static_cast<std::int64_t>(channels.size());
          // Pages of a head share their list, so that entries can be put together.
          const auto* before_it = &run == head.runs.data() ? nullptr : (&run - 1)->page.get();
          page.channels = before_it && before_it->channels && *before_it->channels == channels
                              ? before_it->channels
                              : std::make_shared<const std::vector<std::uint8_t>>(channels);
        }
        const auto k = in.tensor(), v = in.tensor();
        const auto fits = [&](const at::Tensor& x, std::int64_t width) {
          return x.dim() == 2 && x.size(0) == run.count && x.size(1) == width &&
                 (x.scalar_type() == at::kHalf || x.scalar_type() == at::kFloat);
        };
        if (!fits(k, width) || !fits(v, shape_.value) || k.scalar_type() != v.scalar_type())
          throw damaged();
        page.make_room(width, shape_.value, k.scalar_type());
        const auto [page_k, page_v] = held(page);
        page_k.narrow(0, run.begin, run.count).copy_(k);
        page_v.narrow(0, run.begin, run.count).copy_(v);
      }
      refresh(head, 0);
      if (plan_ && plan_->select() && plan_->ready()) summarize(head, &head - row.heads.data(), 0);
    }
  }
  live_ = {};
  const auto holds = in.value<std::uint8_t>();
  if (holds > (kLive | kObserved | kMoved | kOfLayers | kProtected | kFinished | kReadAgain))
    throw damaged();
  layers_ = (holds & kOfLayers) != 0 ? in.value<std::int64_t>() : 1;
  prompt_finished_ = (holds & kFinished) != 0;
  protected_ = (holds & kProtected) != 0 ? in.value<std::int64_t>() : 0;
  if (layers_ < 1 || layers_ > kMost || layer_ < 0 || layer_ > kMost || protected_ < 0 ||
      protected_ > kFarthest)
    throw damaged();
  if ((holds & kLive) != 0) {
    live_.k = in.tensor();
    live_.v = in.tensor();
    live_.positions = in.tensor();
    live_.valid = in.tensor();
    const auto B = rows(), H = shape_.heads;
    const auto N = live_.positions.dim() == 2 ? live_.positions.size(1) : -1;
    const bool fits =
        live_.k.sizes() == at::IntArrayRef({B, H, N, shape_.key}) &&
        live_.v.sizes() == at::IntArrayRef({B, H, N, shape_.value}) &&
        live_.positions.sizes() == at::IntArrayRef({B, N}) &&
        live_.valid.sizes() == at::IntArrayRef({B, N}) &&
        live_.positions.scalar_type() == at::kLong && live_.valid.scalar_type() == at::kBool &&
        at::isFloatingType(live_.k.scalar_type()) && live_.k.scalar_type() == live_.v.scalar_type();
    if (!fits) throw damaged();
    if (in.value<std::uint8_t>() != 0) {
      live_.segments = in.tensor();
      if (live_.segments.sizes() != at::IntArrayRef({B, N}) ||
          live_.segments.scalar_type() != at::kLong)
        throw damaged();
    }
  }
  const auto list = [&](auto& x) {
    using Number = std::remove_reference_t<decltype(x[0])>;
    x.resize(in.count(sizeof(Number)));
    if (!x.empty())
      std::memcpy(x.data(), in.raw(x.size() * sizeof(Number)).data(), x.size() * sizeof(Number));
  };
  if ((holds & kMoved) != 0) {
    for (auto& row : rows_) {
      for (auto& head : row.heads) {
        list(head.homes);
        const auto homes = static_cast<std::int64_t>(head.homes.size());
        if (homes % shape_.key != 0 || homes / shape_.key > head.entries() ||
            (homes > 0 && !row.dropped))
          throw damaged();
      }
    }
  }
  if ((holds & kReadAgain) != 0) {
    for (auto& row : rows_) {
      row.read_again = in.value<std::int64_t>();
      if (row.read_again < 0 || row.read_again > row.seen) throw damaged();
      for (auto& head : row.heads) {
        list(head.again);
        if (static_cast<std::int64_t>(head.again.size()) > head.entries()) throw damaged();
      }
    }
  }
  group_ = 0;
  if ((holds & kObserved) != 0) {
    group_ = in.value<std::int64_t>();
    scale_ = in.value<double>();
    if (group_ < 1 || group_ > kMost || !std::isfinite(scale_)) throw damaged();
    for (auto& row : rows_) {
      list(row.tokens);
      list(row.queries);
      list(row.query_positions);
      const auto w = static_cast<std::int64_t>(row.query_positions.size());
      const auto width = shape_.heads * group_ * shape_.key,
                 held = static_cast<std::int64_t>(row.queries.size());
      if (held % width != 0 || held / width != w ||
          static_cast<std::int64_t>(row.tokens.size()) > row.seen)
        throw damaged();
      for (auto& head : row.heads) {
        list(head.sums);
        if (!head.sums.empty() &&
            static_cast<std::int64_t>(head.sums.size()) != head.entries() * group_)
          throw damaged();
      }
    }
  }
  for (auto& row : rows_) {
    for (auto& head : row.heads) {
      if (encodes()) encode_full_pages(head, 0);
    }
  }
  // Rewinding relies on this: a row that dropped nothing holds all it has seen in every head.
  for (std::int64_t b = 0; b < rows(); ++b) {
    const auto& row = rows_[static_cast<std::size_t>(b)];
    const auto live = paged() ? 0 : live_.valid.select(0, b).sum().item<std::int64_t>();
    if (live > row.seen) throw damaged();
    for (const auto& head : row.heads) {
      if (!row.dropped && head.entries() + live != row.seen) throw damaged();
    }
  }
}

}  // namespace mneme
