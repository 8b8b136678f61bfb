#include "mneme/kernels/narrow.h"

#include "mneme/core/error.h"
#include "mneme/kernels/kernel_table.h"
#include "mneme/kernels/level.h"
#include "mneme/kernels/scratch.h"
#include "mneme/kernels/timing.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <string>
#include <vector>

namespace mneme::kernels {

struct alignas(64) NarrowLine {
  std::uint32_t words[16];
};

namespace {

std::int64_t lines(std::int64_t words) { return (words + 15) / 16; }
std::int64_t panels(std::int64_t N, std::int64_t columns) { return (N + columns - 1) / columns; }

// Rounded rows that stay in the second cache while all panels pass by.
constexpr std::int64_t kRowsTogether = 256;
// Products below which another thread costs more than it brings.
constexpr std::int64_t kNarrowProductsPerThread = 256 * 1024;
// What rounding a row costs, in columns of the product.
constexpr std::int64_t kColumnsOfRounding = 48;

std::uint32_t* row_memory(std::int64_t words) {
  static_assert(sizeof(float) == sizeof(std::uint32_t));
  return reinterpret_cast<std::uint32_t*>(scratch(words));
}

// Threads along rows and along columns: a thread rounds the rows that it takes, whatever its columns.
struct Shares {
  std::int64_t rows = 1, columns = 1;
};

Shares shares(std::int64_t M, std::int64_t N, std::int64_t threads) {
  Shares best;
  std::int64_t least = 0;
  for (std::int64_t rows = 1; rows <= std::min(threads, M); ++rows) {
    const Shares each{rows, threads / rows};
    const std::int64_t cost =
        (M + rows - 1) / rows * (kColumnsOfRounding + (N + each.columns - 1) / each.columns);
    if (least == 0 || cost <= least) best = each, least = cost;
  }
  return best;
}

}  // namespace

struct NarrowMatrix::Content {
  std::vector<NarrowLine> memory;
};

bool multiplies(NarrowType type) {
#if defined(__x86_64__)
  // With instructions for whole matrices, which libtorch uses, its products in bf16 are faster than all of these.
  static const bool matrix_unit = [] {
    __builtin_cpu_init();
    return __builtin_cpu_supports("amx-bf16") != 0;
  }();
  if (matrix_unit && level() == Level::avx512) return false;
#endif
  return table().narrow[static_cast<std::size_t>(type)].columns > 0;
}

NarrowMatrix::NarrowMatrix(NarrowType form, WeightType type, const void* rows, std::int64_t N,
                           std::int64_t K)
    : kernels_(&table().narrow[static_cast<std::size_t>(form)]),
      N_(N),
      K_(K),
      content_(std::make_unique<Content>()) {
  if (is_quantized(type) || N < 0 || K < 0) {
    throw Error(Errc::invalid, "a matrix [" + std::to_string(N) + "," + std::to_string(K) +
                                   "] of " + std::string(name(type)) +
                                   " cannot be rounded: plain ones can");
  }
  if (kernels_->columns == 0) {
    throw Error(Errc::unsupported, "the level " + std::string(table().level) +
                                       " has no products of such rounded numbers");
  }
  const std::int64_t columns = kernels_->columns, count = panels(N, columns),
                     panel_words = kernels_->panel_words(K), row_words = kernels_->row_words(K);
  const auto to_f32 = table().to_f32[static_cast<std::size_t>(type)];
  content_->memory.resize(static_cast<std::size_t>(lines(count * panel_words)));
  auto* out = content_->memory.empty() ? nullptr : content_->memory.data()->words;
  at::parallel_for(0, count, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> row(static_cast<std::size_t>(K));
    auto* narrow = row_memory(columns * row_words);
    for (std::int64_t p = begin; p < end; ++p) {
      const std::int64_t n = std::min(columns, N - p * columns);
      for (std::int64_t i = 0; i < n; ++i) {
        to_f32(static_cast<const std::uint8_t*>(rows) + (p * columns + i) * row_bytes(type, K), K,
               row.data());
        kernels_->narrow(row.data(), 1, K, K, narrow + i * row_words);
      }
      kernels_->pack(narrow, n, K, out + p * panel_words);
    }
  });
}

NarrowMatrix::~NarrowMatrix() = default;
NarrowMatrix::NarrowMatrix(NarrowMatrix&&) noexcept = default;
NarrowMatrix& NarrowMatrix::operator=(NarrowMatrix&&) noexcept = default;

std::int64_t NarrowMatrix::bytes() const noexcept {
  return static_cast<std::int64_t>(content_->memory.size() * sizeof(NarrowLine));
}
const std::uint32_t* NarrowMatrix::data() const noexcept {
  return content_->memory.empty() ? nullptr : content_->memory.data()->words;
}

void multiply(std::span<const NarrowPart> parts, const float* x, std::int64_t M, std::int64_t K,
              std::int64_t x_stride) {
  if (M < 0 || K < 0 || (x_stride < K && M > 1)) {
    throw Error(Errc::invalid, "activations of shape [" + std::to_string(M) + "," +
                                   std::to_string(K) + "], rows " + std::to_string(x_stride) +
                                   " apart");
  }
  std::int64_t N = 0, all = 0;
  for (const NarrowPart& part : parts) {
    if (&part.w->kernels() != &parts.front().w->kernels() || part.w->columns() != K ||
        (part.y_stride < part.w->rows() && M > 1)) {
      throw Error(Errc::invalid, "a product of rows of " + std::to_string(K) +
                                     " numbers with a matrix [" + std::to_string(part.w->rows()) +
                                     "," + std::to_string(part.w->columns()) + "] into rows " +
                                     std::to_string(part.y_stride) + " apart, or of several forms");
    }
    N += part.w->rows();
    all += panels(part.w->rows(), part.w->kernels().columns);
  }
  if (M == 0 || all == 0) return;
  const NarrowKernels& kernels = parts.front().w->kernels();
  const std::int64_t row_words = kernels.row_words(K), panel_words = kernels.panel_words(K);
  const Shares share = shares(
      M, N,
      std::clamp<std::int64_t>(M * N * std::max<std::int64_t>(K, 1) / kNarrowProductsPerThread, 1,
                               std::max<std::int64_t>(1, at::get_num_threads())));
  // Rows [m, m_end) against panels [p, p_end), counted through all parts.
  const auto run = [&](std::int64_t m, std::int64_t m_end, std::int64_t p, std::int64_t p_end) {
    for (; m < m_end; m += kRowsTogether) {
      const std::int64_t rows = std::min(kRowsTogether, m_end - m);
      auto* narrow = row_memory(rows * row_words);
      kernels.narrow(x + m * x_stride, rows, x_stride, K, narrow);
      std::int64_t before = 0;
      for (const NarrowPart& part : parts) {
        const std::int64_t n = part.w->rows(), own = panels(n, kernels.columns);
        const std::int64_t begin = std::max<std::int64_t>(p - before, 0),
                           end = std::min(p_end - before, own);
        if (begin < end) {
          kernels.multiply({narrow, rows, K, part.w->data() + begin * panel_words,
                            begin * kernels.columns, std::min(n, end * kernels.columns), part.bias,
                            part.activation, part.y + m * part.y_stride, part.y_stride});
        }
        before += own;
      }
    }
  };
  const Timed timed;
  at::parallel_for(0, share.rows * share.columns, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t r = i / share.columns, c = i % share.columns;
      run(M * r / share.rows, M * (r + 1) / share.rows, all * c / share.columns,
          all * (c + 1) / share.columns);
    }
  });
}

}  // namespace mneme::kernels
