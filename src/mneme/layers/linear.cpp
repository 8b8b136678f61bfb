#include "mneme/layers/linear.h"

#include "mneme/core/error.h"
#include "mneme/core/read_ahead.h"
#include "mneme/core/unwritten.h"
#include "mneme/kernels/level.h"
#include "mneme/kernels/low_rank.h"
#include "mneme/kernels/narrow.h"
#include "mneme/kernels/packed.h"
#include "mneme/kernels/quantized.h"
#include "mneme/layers/activation.h"
#include "mneme/layers/saved_object.h"
#include "mneme/layers/stored_weight.h"

#include <ATen/ATen.h>
#include <ATen/DimVector.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/SmallVector.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <fmt/format.h>
#include <optional>
#include <typeinfo>

namespace mneme {
namespace {

// Up to this many rows the fused kernel on the stored weight beats dequantizing it for one large product.
constexpr std::int64_t kFusedRows = 8;
// With activations of 8 bits it does so for any number of rows (docs/speed.md has the table), but bf16 loses a fifth of the
// accuracy that they lose: where its products are fast, they take over where that costs less than half of the speed.
constexpr std::int64_t kFusedRowsBesideBf16 = 64;
// Rows of a stored weight that are dequantized at a time: 8 MiB of f32 at 512 columns stay near the cache.
constexpr std::int64_t kTileRows = 4096;

/// Rows of a stored weight as numbers of `type`.
at::Tensor rows_as(const StoredWeight& weight, std::int64_t begin, std::int64_t end,
                   at::ScalarType type) {
  return type == at::kBFloat16 ? weight.rows(begin, end, type)
                               : weight.rows(begin, end, at::kFloat).to(type);
}

/// y = x W' for a stored W, in numbers of `type`, keeping only W's place: backward dequantizes again instead of holding a
/// float copy.
class StoredProduct : public torch::autograd::Function<StoredProduct> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const std::shared_ptr<const StoredWeight>& weight,
                            at::ScalarType type) {
    context->saved_data["weight"] = saved(weight);
    context->saved_data["type"] = static_cast<std::int64_t>(type);
    const auto N = weight->sizes().front();
    const auto input = x.to(type);
    auto y = at::empty({x.size(0), N}, x.options());
    for (std::int64_t n = 0; n < N; n += kTileRows) {
      const auto end = std::min(N, n + kTileRows);
      y.narrow(1, n, end - n).copy_(at::mm(input, rows_as(*weight, n, end, type).t()));
    }
    return y;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto held = saved_object<StoredWeight>(context->saved_data["weight"]);
    const auto type = static_cast<at::ScalarType>(context->saved_data["type"].toInt());
    const auto& weight = *held;
    const auto N = weight.sizes().front();
    const auto g = gradients[0].to(type);
    const auto part = [&](std::int64_t n) {
      const auto end = std::min(N, n + kTileRows);
      return at::mm(N <= kTileRows ? g : g.narrow(1, n, end - n), rows_as(weight, n, end, type))
          .to(gradients[0].scalar_type());
    };
    auto dx = part(0);
    for (std::int64_t n = kTileRows; n < N; n += kTileRows) dx.add_(part(n));
    return {dx, at::Tensor(), at::Tensor()};
  }
};

bool wants_gradient(const at::Tensor& x, const Parameter& weight) {
  return c10::GradMode::is_enabled() &&
         (x.requires_grad() || (weight.tensor.defined() && weight.tensor.requires_grad()));
}

/// The weight as its file holds it, or null. Asked for at every product, so without the search of a dynamic_cast.
const FileWeight* file_of(const Parameter& weight) {
  const auto* stored = weight.stored.get();
  return stored != nullptr && typeid(*stored) == typeid(FileWeight)
             ? static_cast<const FileWeight*>(stored)
             : nullptr;
}

/// What few rows meet quantized weights as: themselves where the caller names what products run in.
kernels::Activations activations(Compute compute) {
  if (compute == Compute::q16) return kernels::Activations::q16;
  return compute == Compute::f32 || compute == Compute::bf16 ? kernels::Activations::f32
                                                             : kernels::Activations::q8;
}

/// The weight's file form where the fused kernel for few rows serves this product, else null.
const FileWeight* fused_file(const at::Tensor& x, std::int64_t M, const Parameter& weight,
                             Compute compute) {
  if (x.scalar_type() != at::kFloat || wants_gradient(x, weight)) return nullptr;
  const auto* file = file_of(weight);
  if (file == nullptr || M <= kFusedRows) return file;
  if (!is_quantized(file->weight().type)) return nullptr;
  const auto form = activations(compute);
  const bool integers = form == kernels::Activations::q16 ||
                        (form == kernels::Activations::q8 &&
                         (M <= kFusedRowsBesideBf16 || !kernels::has_bf16_products()));
  return integers ? file : nullptr;
}

/// The form that plain weights are kept in for products of this type, if they are.
std::optional<kernels::NarrowType> narrow_type(Compute compute) {
  using enum kernels::NarrowType;
  if (keeps_f32(compute)) return std::nullopt;
  if (compute == Compute::int8 && kernels::multiplies(int8)) return int8;
  if (kernels::multiplies(bf16)) return bf16;
  const bool integers = compute == Compute::int8 || compute == Compute::int16;
  return integers && kernels::multiplies(int16) ? std::optional(int16) : std::nullopt;
}

using Updates = c10::SmallVector<kernels::LowRankPart, 2>;

/// The first adapters of a weight [out, in], up to one that is more than a low-rank update. None where apply() must record
/// a gradient or x has another number type.
Updates updates_of(const Parameter& weight, const at::Tensor& x, std::int64_t in,
                   std::int64_t out) {
  Updates updates;
  if (weight.adapters.empty() || x.scalar_type() != at::kFloat || wants_gradient(x, weight))
    return updates;
  for (const auto& adapter : weight.adapters) {
    const auto* update = adapter->low_rank();
    if (update == nullptr) break;
    if (update->in != in || update->out != out) {
      throw Error(Errc::mismatch, fmt::format("an adapter of a matrix [{}, {}] is attached to one "
                                              "that is [{}, {}]",
                                              update->out, update->in, out, in));
    }
    const auto type = weight_type(update->type);
    MNEME_ASSERT(type);
    updates.push_back({*type, update->a, update->b, update->rank, update->scale});
  }
  return updates;
}

/// The input of one or several products: rows [M, in], and what the products make of them once.
class Input {
 public:
  explicit Input(at::Tensor rows) : rows_(std::move(rows)) {}

  [[nodiscard]] const at::Tensor& rows() const { return rows_; }
  /// The rows as they lie in memory one after another, in f32.
  const float* numbers() {
    if (!rows_.is_contiguous()) rows_ = rows_.contiguous();
    return rows_.const_data_ptr<float>();
  }
  const at::Tensor& as(at::ScalarType type) {
    if (!converted_.defined() || converted_.scalar_type() != type) converted_ = rows_.to(type);
    return converted_;
  }
  /// [M, columns] in `type`, whose first columns are the rows; the others are for the caller to fill, until the next call.
  at::Tensor widened(at::ScalarType type, std::int64_t columns) {
    if (!wide_.defined() || wide_.scalar_type() != type || wide_.size(1) < columns) {
      wide_ = at::empty({rows_.size(0), columns}, rows_.options().dtype(type));
      wide_.narrow(1, 0, rows_.size(1)).copy_(rows_);
    }
    return wide_.narrow(1, 0, columns);
  }

 private:
  at::Tensor rows_, converted_, wide_;
};

/// The parts of a product of N columns, computed by `part(begin, end)` for at most kTileRows of them at a time, as f32.
template <class Part>
at::Tensor by_tiles(const at::Tensor& rows, std::int64_t N, const Part& part) {
  if (N <= kTileRows) return part(0, N).to(rows.scalar_type());
  auto y = at::empty({rows.size(0), N}, rows.options());
  for (std::int64_t n = 0; n < N; n += kTileRows) {
    const auto end = std::min(N, n + kTileRows);
    y.narrow(1, n, end - n).copy_(part(n, end));
  }
  return y;
}

// From so many rows on, f32 products have updates merged into each tile of the weight: a fixed cost, less by then than that
// of copying x and of more columns. bf16 products copy x anyway, to narrow it.
constexpr std::int64_t kMergedRows = 384;
// From so many rows on, a bf16 product is faster than the kernel for A x, though it narrows A at each call.
constexpr std::int64_t kNarrowInputRows = 256;

/// Memory for a tile of a weight [rows, columns], for this thread's use until its next call.
at::Tensor tile_memory(std::int64_t rows, std::int64_t columns, at::ScalarType type) {
  // Returned to the system and fetched again for every product, its pages cost more than what is put there.
  constexpr std::int64_t kKeptBytes = std::int64_t{8} << 20;
  thread_local at::Tensor kept;
  const auto bytes = rows * columns * static_cast<std::int64_t>(at::elementSize(type));
  if (bytes > kKeptBytes) return at::empty({rows, columns}, at::dtype(type));
  if (!kept.defined() || kept.numel() < bytes) {
    const c10::InferenceMode usable_in_every_mode(false);
    kept = at::empty({bytes}, at::dtype(at::kByte));
  }
  return kept.narrow(0, 0, bytes).view(type).view({rows, columns});
}

/// x (W + s B A)' in f32.
at::Tensor merged_product(Input& x, const WeightTensor& weight, const Updates& updates) {
  const auto K = x.rows().size(1), N = weight.shape.front();
  const auto& input = x.as(at::kFloat);
  const auto tile = tile_memory(std::min(N, kTileRows), K, at::kFloat);
  return by_tiles(x.rows(), N, [&](std::int64_t begin, std::int64_t end) {
    kernels::dequantize_merged(weight.type, weight.data, begin, end, K, updates,
                               tile.mutable_data_ptr<float>());
    return at::mm(input, tile.narrow(0, 0, end - begin).t());
  });
}

std::uint16_t* bf16_numbers(const at::Tensor& tensor) {
  return reinterpret_cast<std::uint16_t*>(tensor.mutable_data_ptr<at::BFloat16>());
}

/// Puts x A' of the updates, one after another, and zeros into the columns of `left` [M, columns] behind x.
void put_inputs(Input& x, const Updates& updates, const at::Tensor& left) {
  const auto M = left.size(0), K = x.rows().size(1), columns = left.size(1) - K;
  if (left.scalar_type() == at::kFloat) {
    kernels::low_rank_inputs(updates, x.numbers(), M, K, left.mutable_data_ptr<float>() + K,
                             columns, left.stride(0));
  } else if (M < kNarrowInputRows) {
    kernels::low_rank_inputs_bf16(updates, x.numbers(), M, K, bf16_numbers(left) + K, columns,
                                  left.stride(0));
  } else {
    auto at = K;
    for (const auto& update : updates) {
      const auto a = at::empty({update.rank, K}, left.options());
      kernels::dequantize_bf16(update.type, update.a, update.rank, K, bf16_numbers(a));
      auto to = left.narrow(1, at, update.rank);
      at::mm_out(to, left.narrow(1, 0, K), a.t());
      at += update.rank;
    }
    left.narrow(1, at, left.size(1) - at).zero_();
  }
}

/// x W' + s x A' B' as one product of [x | x A'] and [W | s B], in numbers of `type`.
at::Tensor wide_product(Input& x, const WeightTensor& weight, const Updates& updates,
                        at::ScalarType type) {
  const auto K = x.rows().size(1), N = weight.shape.front();
  const bool narrow = type == at::kBFloat16;
  const std::int64_t line = narrow ? 32 : 16;  // numbers in a cache line, where rows begin
  const auto columns = (K + kernels::total_rank(updates) + line - 1) / line * line;
  const auto left = x.widened(type, columns);
  put_inputs(x, updates, left);
  const auto tile = tile_memory(std::min(N, kTileRows), columns, type);
  return by_tiles(x.rows(), N, [&](std::int64_t begin, std::int64_t end) {
    if (narrow) {
      kernels::dequantize_beside_bf16(weight.type, weight.data, begin, end, K, updates,
                                      bf16_numbers(tile), columns);
    } else {
      kernels::dequantize_beside(weight.type, weight.data, begin, end, K, updates,
                                 tile.mutable_data_ptr<float>(), columns);
    }
    return at::mm(left, tile.narrow(0, 0, end - begin).t());
  });
}

/// x times the transpose of the weight, and the updates; see product().
at::Tensor product_with(Input& x, const Parameter& weight, const Updates& updates,
                        Compute compute) {
  const auto& rows = x.rows();
  if (wants_gradient(rows, weight)) {
    if (!weight.stored) return at::mm(rows, weight.tensor.to(rows.scalar_type()).t());
    // Gradients are exact unless the caller asks for speed: `automatic` stays in the number type of x.
    const bool narrow = compute == Compute::bf16 && rows.scalar_type() == at::kFloat &&
                        kernels::has_bf16_products();
    return StoredProduct::apply(rows, weight.stored, narrow ? at::kBFloat16 : rows.scalar_type());
  }
  const auto N = weight.sizes().front();
  const auto type = rows.scalar_type() == at::kDouble ? at::kDouble : product_type(compute);
  const auto* file = file_of(weight);
  if (file != nullptr && !updates.empty()) {
    return type == at::kFloat && rows.size(0) >= kMergedRows
               ? merged_product(x, file->weight(), updates)
               : wide_product(x, file->weight(), updates, type);
  }
  const auto& input = x.as(type);
  auto y = weight.stored
               ? by_tiles(rows, N,
                          [&](std::int64_t begin, std::int64_t end) {
                            return at::mm(input, rows_as(*weight.stored, begin, end, type).t());
                          })
               : at::mm(input, weight.tensor.to(type).t()).to(rows.scalar_type());
  if (!updates.empty())
    kernels::add_low_rank(updates, x.numbers(), rows.size(0), rows.size(1),
                          y.mutable_data_ptr<float>(), N, N);
  return y;
}

/// x [..., in] times several weights as stored, a few rows in one run of the fused kernel: [..., out] each.
Linear::Tensors fused_products(const at::Tensor& x, at::ArrayRef<const FileWeight*> files,
                               at::ArrayRef<Updates> updates, Compute compute) {
  const auto rows = x.contiguous();
  const auto K = x.size(-1), M = x.numel() / K;
  const auto form = activations(compute);
  at::DimVector sizes(x.sizes().begin(), x.sizes().end());
  Linear::Tensors out;
  c10::SmallVector<kernels::MatvecPart, 4> parts;
  for (std::size_t i = 0; i < files.size(); ++i) {
    const auto& weight = files[i]->weight();
    const auto* packed = form != kernels::Activations::f32 ? files[i]->packed() : nullptr;
    read_ahead.note(packed);
    const auto N = packed != nullptr ? packed->rows() : weight.shape.front();
    sizes.back() = N;
    out.emplace_back(unwritten(sizes));
    parts.push_back({weight.type, weight.data, N,
                     static_cast<float*>(out.back().mutable_data_ptr()), N, updates[i], packed});
  }
  kernels::matvec(parts, rows.const_data_ptr<float>(), M, K, form);
  return out;
}

}  // namespace

at::ScalarType product_type(Compute compute) {
  if (keeps_f32(compute)) return at::kFloat;
  return kernels::has_bf16_products() ? at::kBFloat16 : at::kFloat;
}

at::Tensor product(const at::Tensor& x, const Parameter& weight, Compute compute) {
  if (const auto* file = fused_file(x, x.size(0), weight, compute))
    return std::move(fused_products(x, file, Updates{}, compute).front());
  Input input(x);
  return product_with(input, weight, {}, compute);
}

Linear::Linear(Params& params, std::string_view name, std::int64_t in, std::int64_t out, bool bias)
    : in_(in), out_(out), weight_(params.weight(fmt::format("{}.weight", name), {out, in})) {
  if (bias) bias_ = params.weight(fmt::format("{}.bias", name), {out}, Init::zeros);
}

void Linear::check(const at::Tensor& x) const {
  if (x.size(-1) != in_)
    throw Error(Errc::invalid,
                fmt::format("a linear layer of {} inputs was given {}", in_, x.size(-1)));
}

void Linear::count(const at::Tensor& x, const Call& call) const {
  if (!call.cost) return;
  call.cost->flops += 2.0 * static_cast<double>(x.numel()) * static_cast<double>(out_);
  call.cost->bytes +=
      static_cast<double>(weight_->stored ? weight_->stored->bytes() : weight_->tensor.numel() * 4);
  for (const auto& adapter : weight_->adapters) {
    const auto* update = adapter->low_rank();
    if (update == nullptr) continue;
    const auto rows = static_cast<double>(x.numel() / in_);
    const auto numbers = static_cast<double>(update->rank * (in_ + out_));
    call.cost->flops += 2.0 * rows * numbers;
    call.cost->bytes += numbers * static_cast<double>(at::elementSize(update->type));
  }
}

at::Tensor Linear::finish(const at::Tensor& x, at::Tensor y, std::size_t applied) const {
  if (bias_)
    y = y.requires_grad() || bias_->tensor.requires_grad() ? y + bias_->tensor
                                                           : y.add_(bias_->tensor);
  for (auto i = applied; i < weight_->adapters.size(); ++i) y = weight_->adapters[i]->apply(x, y);
  return y;
}

const kernels::NarrowMatrix* Linear::narrow(const at::Tensor& x, const Call& call) const {
  const auto* file = file_of(*weight_);
  if (file == nullptr || is_quantized(file->weight().type) || !weight_->adapters.empty() ||
      x.scalar_type() != at::kFloat || !x.is_cpu() || wants_gradient(x, *weight_) ||
      (bias_ && (bias_->tensor.scalar_type() != at::kFloat || wants_gradient(x, *bias_)))) {
    return nullptr;
  }
  const bool integers = call.compute == Compute::int8 || call.compute == Compute::int16;
  const auto form = narrow_type(call.compute);
  if (!form || (!integers && x.numel() <= kFusedRows * in_)) return nullptr;
  return file->narrow(*form);
}

Linear::Tensors Linear::narrow_products(at::ArrayRef<const Linear*> layers, const at::Tensor& x,
                                        kernels::Activation activation, const Call& call) {
  c10::SmallVector<kernels::NarrowPart, 4> parts;
  for (const auto* layer : layers) {
    const auto* w = layer->narrow(x, call);
    if (w == nullptr || (!parts.empty() && &w->kernels() != &parts.front().w->kernels())) return {};
    const auto* bias = layer->bias_ ? layer->bias_->tensor.const_data_ptr<float>() : nullptr;
    parts.push_back({w, bias, activation, nullptr, layer->out_});
  }
  const auto rows = x.reshape({-1, x.size(-1)}).contiguous();
  auto sizes = x.sizes().vec();
  Tensors out;
  for (auto& part : parts) {
    sizes.back() = part.y_stride;
    out.push_back(at::empty(sizes, x.options()));
    part.y = out.back().mutable_data_ptr<float>();
  }
  kernels::multiply(parts, rows.const_data_ptr<float>(), rows.size(0), rows.size(1), rows.size(1));
  return out;
}

at::Tensor Linear::activated(const at::Tensor& x, std::string_view activation,
                             const Call& call) const {
  check(x);
  auto out = narrow_products({this}, x, activation_named(activation), call);
  if (out.empty()) return activate(activation, (*this)(x, call));
  count(x, call);
  return std::move(out.front());
}

at::Tensor Linear::operator()(const at::Tensor& x, const Call& call) const {
  return std::move(together({this}, x, call).front());
}

Linear::Tensors Linear::together(at::ArrayRef<const Linear*> layers, const at::Tensor& x,
                                 const Call& call) {
  for (const auto* layer : layers) {
    read_ahead.note(layer);
    read_ahead.note(layer->weight_.get());
    read_ahead.note(layer->weight_->stored.get());
    layer->check(x);
  }
  const auto rounded = std::count_if(layers.begin(), layers.end(), [&](const Linear* layer) {
    return layer->narrow(x, call) != nullptr;
  });
  if (rounded != 0 && rounded != static_cast<std::ptrdiff_t>(layers.size())) {
    Tensors out;
    for (const auto* layer : layers) out.push_back((*layer)(x, call));
    return out;
  }
  for (const auto* layer : layers) layer->count(x, call);
  if (rounded != 0) return narrow_products(layers, x, kernels::Activation::none, call);
  const auto M = x.numel() / x.size(-1);
  c10::SmallVector<const FileWeight*, 4> files;
  c10::SmallVector<Updates, 4> updates;
  bool fused = true;
  for (const auto* layer : layers) {
    const auto& weight = *layer->weight_;
    files.push_back(fused_file(x, M, weight, call.compute));
    updates.push_back(updates_of(weight, x, layer->in_, layer->out_));
    fused = fused && files.back() != nullptr;
  }
  Tensors out;
  if (fused) {
    out = fused_products(x, files, updates, call.compute);
  } else {
    Input input(x.reshape({-1, x.size(-1)}));
    auto sizes = x.sizes().vec();
    for (std::size_t i = 0; i < layers.size(); ++i) {
      if (files[i] != nullptr) {
        out.push_back(std::move(fused_products(x, files[i], updates[i], call.compute).front()));
        continue;
      }
      sizes.back() = layers[i]->out_;
      out.push_back(product_with(input, *layers[i]->weight_, updates[i], call.compute).view(sizes));
    }
  }
  for (std::size_t i = 0; i < layers.size(); ++i)
    out[i] = layers[i]->finish(x, std::move(out[i]), updates[i].size());
  return out;
}

}  // namespace mneme
