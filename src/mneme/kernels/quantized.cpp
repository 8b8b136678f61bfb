#include "mneme/kernels/quantized.h"

#include "mneme/core/error.h"
#include "mneme/kernels/kernel_table.h"
#include "mneme/kernels/level.h"
#include "mneme/kernels/timing.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <string>
#include <vector>

namespace mneme::kernels {
namespace {

// Work below which another thread costs more than it brings: bytes of weights, numbers unpacked or rounded.
constexpr std::int64_t kBytesPerThread = 16 * 1024;
constexpr std::int64_t kNumbersPerThread = 32 * 1024, kRoundedPerThread = 4 * 1024;

std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

void check_columns(WeightType type, std::int64_t K) {
  if (K < 0 || K % block_size(type) != 0) {
    throw Error(Errc::invalid, "a row of " + std::to_string(K) +
                                   " numbers is not whole blocks of " +
                                   std::to_string(block_size(type)) + ", as " +
                                   std::string(name(type)) + " needs");
  }
}

template <class Number, class Unpack>
void unpack(WeightType type, const void* rows, std::int64_t n_rows, std::int64_t K, Number* out,
            Unpack kernel) {
  check_columns(type, K);
  if (n_rows < 0)
    throw Error(Errc::invalid, "a negative number of rows to unpack: " + std::to_string(n_rows));
  const auto* in = static_cast<const std::uint8_t*>(rows);
  const std::int64_t size = block_size(type), bytes = block_bytes(type);
  const Timed timed;
  at::parallel_for(0, n_rows * (K / size), kNumbersPerThread / size,
                   [&](std::int64_t begin, std::int64_t end) {
                     kernel(in + begin * bytes, end - begin, out + begin * size);
                   });
}

// Rows of weights between one request for rows of B and the next.
constexpr std::int64_t kRowsBeside = 32;

void fetch_rows(const LowRankPart& update, std::int64_t begin, std::int64_t end) {
  const std::int64_t row = update.rank * block_bytes(update.type);
  const auto* from = static_cast<const char*>(update.b) + begin * row;
  for (std::int64_t i = 0; i < (end - begin) * row; i += 64) __builtin_prefetch(from + i);
}

// t = A x of all updates of a product. Every thread makes a share of its rows and then goes on with weights, so that the
// whole is there when it asks for it and threads need not meet.
class LowRankInputs {
 public:
  LowRankInputs(std::span<const MatvecPart> parts, const ActivationRows& a, std::int64_t rank,
                std::int64_t shares, std::vector<float>& memory)
      : parts_(parts), rank_(rank), shares_(shares), t_(memory) {
    a_ = ActivationRows{a.x, a.M, a.K, nullptr, nullptr, nullptr, nullptr, 0, 0};
    t_.resize(static_cast<std::size_t>(a.M * rank));
  }

  /// Makes shares begin..end.
  void make(std::int64_t begin, std::int64_t end) {
    rows(rank_ * begin / shares_, rank_ * end / shares_, t_.data());
    made_.fetch_add(end - begin, std::memory_order_release);
  }
  /// All of it [M,rank]: waits a moment for the others, then does without them, so that no schedule of threads can hang.
  [[nodiscard]] const float* get() const {
    constexpr int kLooks = 4096;
    for (int i = 0; i < kLooks; ++i) {
      if (made_.load(std::memory_order_acquire) == shares_) return t_.data();
    }
    thread_local std::vector<float> own;
    own.resize(t_.size());
    rows(0, rank_, own.data());
    return own.data();
  }

 private:
  void rows(std::int64_t begin, std::int64_t end, float* t) const {
    std::int64_t before = 0;
    for (const MatvecPart& part : parts_) {
      for (const LowRankPart& update : part.low_rank) {
        const std::int64_t first = std::max<std::int64_t>(0, begin - before),
                           last = std::min(update.rank, end - before);
        if (first < last) {
          table().matvec_f32[static_cast<std::size_t>(update.type)](
              static_cast<const std::uint8_t*>(update.a), first, last, a_, t + before, rank_);
        }
        before += update.rank;
      }
    }
  }

  std::span<const MatvecPart> parts_;
  ActivationRows a_;
  std::int64_t rank_, shares_;
  std::vector<float>& t_;
  std::atomic<std::int64_t> made_{0};
};

}  // namespace

void dequantize(WeightType type, const void* rows, std::int64_t n_rows, std::int64_t K,
                float* out) {
  unpack(type, rows, n_rows, K, out, table().to_f32[static_cast<std::size_t>(type)]);
}

void dequantize_bf16(WeightType type, const void* rows, std::int64_t n_rows, std::int64_t K,
                     std::uint16_t* out) {
  unpack(type, rows, n_rows, K, out, table().to_bf16[static_cast<std::size_t>(type)]);
}

struct QuantizedRows::Content {
  struct alignas(64) Line {
    std::uint8_t bytes[64];
  };
  ActivationRows view{};
  std::vector<Line> memory;
};

QuantizedRows::QuantizedRows() : content_(std::make_unique<Content>()) {}
QuantizedRows::QuantizedRows(const float* x, std::int64_t M, std::int64_t K) : QuantizedRows() {
  assign(x, M, K);
}
QuantizedRows::~QuantizedRows() = default;
QuantizedRows::QuantizedRows(QuantizedRows&&) noexcept = default;
QuantizedRows& QuantizedRows::operator=(QuantizedRows&&) noexcept = default;

std::int64_t QuantizedRows::rows() const noexcept { return content_->view.M; }
std::int64_t QuantizedRows::columns() const noexcept { return content_->view.K; }
bool QuantizedRows::quantized() const noexcept { return content_->view.q != nullptr; }
const ActivationRows& QuantizedRows::view() const noexcept { return content_->view; }

void QuantizedRows::assign(const float* x, std::int64_t M, std::int64_t K, Activations form) {
  if (M < 0 || K < 0) {
    throw Error(Errc::invalid,
                "activations of shape [" + std::to_string(M) + "," + std::to_string(K) + "]");
  }
  ActivationRows& view = content_->view;
  view = ActivationRows{x, M, K, nullptr, nullptr, nullptr, nullptr, 0, 0};
  if (form == Activations::f32 || K % kBlock != 0) return;
  view.parts = form == Activations::q16 ? 2 : 1;
  const std::int64_t integer_rows = M * view.parts;
  view.q_stride = round_up(K, 2 * kBlock);
  view.block_stride = round_up(K / kBlock, 16);
  const std::int64_t line = static_cast<std::int64_t>(sizeof(Content::Line));
  const std::int64_t q_lines = integer_rows * view.q_stride / line,
                     block_lines = integer_rows * view.block_stride * 4 / line;
  content_->memory.resize(static_cast<std::size_t>(q_lines + 3 * block_lines + 1));
  Content::Line* at = content_->memory.data();
  ActivationTarget to{};
  to.q = reinterpret_cast<std::int8_t*>(at);
  to.scale = reinterpret_cast<float*>(at + q_lines);
  to.total = reinterpret_cast<std::int32_t*>(at + q_lines + block_lines);
  to.scaled_total = reinterpret_cast<float*>(at + q_lines + 2 * block_lines);
  to.q_stride = view.q_stride;
  to.block_stride = view.block_stride;
  to.parts = view.parts;
  const KernelTable& kernels = table();
  const Timed timed;
  at::parallel_for(0, M,
                   std::max<std::int64_t>(1, kRoundedPerThread / std::max<std::int64_t>(1, K)),
                   [&](std::int64_t begin, std::int64_t end) {
                     ActivationTarget rows = to;
                     const std::int64_t first = begin * to.parts;
                     rows.q += first * to.q_stride;
                     rows.scale += first * to.block_stride;
                     rows.total += first * to.block_stride;
                     rows.scaled_total += first * to.block_stride;
                     kernels.quantize_activations(x + begin * K, end - begin, K, rows);
                   });
  view.q = to.q;
  view.scale = to.scale;
  view.total = to.total;
  view.scaled_total = to.scaled_total;
}

QuantizedRows quantize_activations(const float* x, std::int64_t M, std::int64_t K) {
  return {x, M, K};
}

void matvec(std::span<const MatvecPart> parts, const QuantizedRows& x) {
  const ActivationRows& a = x.view();
  std::int64_t rows = 0, bytes = 0, rank = 0;
  for (const MatvecPart& part : parts) {
    check_columns(part.type, a.K);
    if (part.N < 0 || (part.y_stride < part.N && a.M > 1)) {
      throw Error(Errc::invalid, "a product of " + std::to_string(part.N) + " columns into rows " +
                                     std::to_string(part.y_stride) + " apart");
    }
    if (part.packed != nullptr &&
        (part.packed->type() != part.type || part.packed->rows() != part.N ||
         part.packed->columns() != a.K)) {
      throw Error(Errc::invalid, "a product with a matrix that was packed from another one");
    }
    rows += part.N;
    bytes += part.N * row_bytes(part.type, a.K);
    rank += total_rank(part.low_rank);
  }
  if (rows == 0 || a.M == 0) return;
  const KernelTable& kernels = table();
  // Threads take equal shares of bytes, in steps of rows that kernels take together.
  static_assert(kPackedRows == kLowRankRows);
  constexpr std::int64_t step = kPackedRows;
  const std::int64_t work = bytes * std::max<std::int64_t>(1, a.M * a.parts / 4);
  const std::int64_t most = std::max<std::int64_t>(1, work / kBytesPerThread);
  const std::int64_t threads = std::min<std::int64_t>(at::get_num_threads(), most);
  thread_local std::vector<float> memory;
  LowRankInputs inputs(parts, a, rank, threads, memory);
  const auto multiply = [&](const MatvecPart& part, std::int64_t n_begin, std::int64_t n_end) {
    const auto type = static_cast<std::size_t>(part.type);
    if (a.q != nullptr && part.packed != nullptr) {
      kernels.matvec[type](part.packed->data(), n_begin, n_end, a, part.y, part.y_stride);
    } else {
      kernels.matvec_f32[type](static_cast<const std::uint8_t*>(part.w), n_begin, n_end, a, part.y,
                               part.y_stride);
    }
  };
  const auto share = [&](std::int64_t first, std::int64_t last, const auto& rows_of) {
    std::int64_t before = 0, rank_before = 0;  // bytes and ranks of earlier parts
    for (const MatvecPart& part : parts) {
      const std::int64_t row = std::max<std::int64_t>(1, row_bytes(part.type, a.K));
      const auto index = [&](std::int64_t at) {
        return std::clamp<std::int64_t>(
            round_up(std::max<std::int64_t>(0, at - before) / row, step), 0, part.N);
      };
      const std::int64_t n_begin = index(first), n_end = last >= bytes ? part.N : index(last);
      if (n_begin < n_end) rows_of(part, n_begin, n_end, rank_before);
      before += part.N * row_bytes(part.type, a.K);
      for (const LowRankPart& update : part.low_rank) rank_before += update.rank;
    }
  };
  const Timed timed;
  at::parallel_for(0, threads, 1, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t first = bytes / threads * begin,
                       last = end == threads ? bytes : bytes / threads * end;
    const auto plain = [&](const MatvecPart& part, std::int64_t n_begin, std::int64_t n_end,
                           std::int64_t) { multiply(part, n_begin, n_end); };
    if (rank == 0) return share(first, last, plain);
    inputs.make(begin, end);
    // B arrives while the weights beside it are read.
    share(first, last,
          [&](const MatvecPart& part, std::int64_t n_begin, std::int64_t n_end, std::int64_t) {
            for (std::int64_t n = n_begin; n < n_end; n += kRowsBeside) {
              const std::int64_t n_next = std::min(n + kRowsBeside, n_end);
              for (const LowRankPart& update : part.low_rank) fetch_rows(update, n, n_next);
              multiply(part, n, n_next);
            }
          });
    const float* t = inputs.get();
    share(first, last,
          [&](const MatvecPart& part, std::int64_t n_begin, std::int64_t n_end,
              std::int64_t rank_before) {
            for (const LowRankPart& update : part.low_rank) {
              table().add_low_rank[static_cast<std::size_t>(update.type)](
                  {update.b, update.rank, update.scale, t + rank_before, a.M, rank, part.y, part.N,
                   part.y_stride},
                  n_begin, n_end);
              rank_before += update.rank;
            }
          });
  });
}

void matvec(std::span<const MatvecPart> parts, const float* x, std::int64_t M, std::int64_t K,
            Activations activations) {
  thread_local QuantizedRows rows;
  const bool integers = std::any_of(parts.begin(), parts.end(),
                                    [](const MatvecPart& p) { return p.packed != nullptr; });
  rows.assign(x, M, K, integers ? activations : Activations::f32);
  matvec(parts, rows);
}

void matvec(WeightType type, const void* w, std::int64_t N, std::int64_t K, const float* x,
            std::int64_t M, float* y, Activations activations) {
  MatvecPart part{type, w, N, y, N};
  std::optional<PackedMatrix> packed;
  if (is_quantized(type) && activations != Activations::f32)
    part.packed = &packed.emplace(type, w, N, K);
  matvec(std::span(&part, 1), x, M, K, activations);
}

}  // namespace mneme::kernels
