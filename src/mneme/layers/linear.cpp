#include "mneme/layers/linear.h"

#include "mneme/core/error.h"
#include "mneme/kernels/level.h"
#include "mneme/kernels/quantized.h"
#include "mneme/layers/stored_weight.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <fmt/format.h>

namespace mneme {
namespace {

// Up to this many rows the fused kernel on the stored weight beats dequantizing it for one large product.
constexpr std::int64_t kFusedRows = 8;
// Rows of a stored weight that are dequantized at a time: 8 MiB of f32 at 512 columns stay near the cache.
constexpr std::int64_t kTileRows = 4096;

struct HeldWeight final : torch::CustomClassHolder {
  explicit HeldWeight(std::shared_ptr<const StoredWeight> held) : weight(std::move(held)) {}
  std::shared_ptr<const StoredWeight> weight;
};

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
    context->saved_data["weight"] =
        at::IValue::make_capsule(c10::make_intrusive<HeldWeight>(weight));
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
    const auto held =
        c10::static_intrusive_pointer_cast<HeldWeight>(context->saved_data["weight"].toCapsule());
    const auto type = static_cast<at::ScalarType>(context->saved_data["type"].toInt());
    const auto& weight = *held->weight;
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

/// The weight's file form where the fused kernel for few rows serves this product, else null.
const FileWeight* fused_file(const at::Tensor& x, std::int64_t M, const Parameter& weight) {
  if (M > kFusedRows || x.scalar_type() != at::kFloat || wants_gradient(x, weight)) return nullptr;
  return dynamic_cast<const FileWeight*>(weight.stored.get());
}

kernels::Activations activations(Compute compute) {
  return compute == Compute::f32 ? kernels::Activations::f32 : kernels::Activations::q8;
}

}  // namespace

at::ScalarType product_type(Compute compute) {
  if (compute == Compute::f32) return at::kFloat;
  return kernels::has_bf16_products() ? at::kBFloat16 : at::kFloat;
}

at::Tensor product(const at::Tensor& x, const Parameter& weight, Compute compute) {
  if (wants_gradient(x, weight)) {
    if (!weight.stored) return at::mm(x, weight.tensor.to(x.scalar_type()).t());
    // Gradients are exact unless the caller asks for speed: `automatic` stays in the number type of x.
    const bool narrow =
        compute == Compute::bf16 && x.scalar_type() == at::kFloat && kernels::has_bf16_products();
    return StoredProduct::apply(x, weight.stored, narrow ? at::kBFloat16 : x.scalar_type());
  }
  const auto M = x.size(0), N = weight.sizes().front();
  const auto type = x.scalar_type() == at::kDouble ? at::kDouble : product_type(compute);
  if (const auto* file = fused_file(x, M, weight)) {
    auto y = at::empty({M, N}, x.options());
    const auto rows = x.contiguous();
    kernels::matvec(file->weight().type, file->weight().data, N, x.size(1),
                    rows.const_data_ptr<float>(), M, y.mutable_data_ptr<float>(),
                    activations(compute));
    return y;
  }
  const auto input = x.to(type);
  if (!weight.stored) return at::mm(input, weight.tensor.to(type).t()).to(x.scalar_type());
  if (N <= kTileRows)
    return at::mm(input,
                  weight.stored->rows(0, N, type == at::kDouble ? at::kFloat : type).to(type).t())
        .to(x.scalar_type());
  auto y = at::empty({M, N}, x.options());
  for (std::int64_t n = 0; n < N; n += kTileRows) {
    const auto end = std::min(N, n + kTileRows);
    y.narrow(1, n, end - n)
        .copy_(at::mm(
            input,
            weight.stored->rows(n, end, type == at::kDouble ? at::kFloat : type).to(type).t()));
  }
  return y;
}

Linear::Linear(Params& params, std::string_view name, std::int64_t in, std::int64_t out, bool bias)
    : in_(in), out_(out), weight_(params.weight(fmt::format("{}.weight", name), {out, in})) {
  if (bias) bias_ = params.weight(fmt::format("{}.bias", name), {out}, Init::zeros);
}

void Linear::count(const at::Tensor& x, const Call& call) const {
  if (x.size(-1) != in_)
    throw Error(Errc::invalid,
                fmt::format("a linear layer of {} inputs was given {}", in_, x.size(-1)));
  if (!call.cost) return;
  call.cost->flops += 2.0 * static_cast<double>(x.numel()) * static_cast<double>(out_);
  call.cost->bytes +=
      static_cast<double>(weight_->stored ? weight_->stored->bytes() : weight_->tensor.numel() * 4);
}

at::Tensor Linear::finish(const at::Tensor& x, at::Tensor y) const {
  auto sizes = x.sizes().vec();
  sizes.back() = out_;
  y = y.view(sizes);
  if (bias_)
    y = y.requires_grad() || bias_->tensor.requires_grad() ? y + bias_->tensor
                                                           : y.add_(bias_->tensor);
  for (const auto& adapter : weight_->adapters) y = adapter->apply(x, y);
  return y;
}

at::Tensor Linear::operator()(const at::Tensor& x, const Call& call) const {
  count(x, call);
  return finish(x, product(x.reshape({-1, in_}), *weight_, call.compute));
}

std::vector<at::Tensor> Linear::together(const std::vector<const Linear*>& layers,
                                         const at::Tensor& x, const Call& call) {
  const auto M = x.numel() / x.size(-1);
  bool fused = true;
  for (const auto* layer : layers) fused = fused && fused_file(x, M, *layer->weight_) != nullptr;
  std::vector<at::Tensor> out;
  if (!fused) {
    for (const auto* layer : layers) out.push_back((*layer)(x, call));
    return out;
  }
  const auto rows = x.reshape({M, x.size(-1)}).contiguous();
  std::vector<kernels::MatvecPart> parts;
  for (const auto* layer : layers) {
    layer->count(x, call);
    out.push_back(at::empty({M, layer->out_}, x.options()));
    const auto& weight = fused_file(x, M, *layer->weight_)->weight();
    parts.push_back(
        {weight.type, weight.data, layer->out_, out.back().mutable_data_ptr<float>(), layer->out_});
  }
  kernels::matvec(parts, rows.const_data_ptr<float>(), M, rows.size(1), activations(call.compute));
  for (std::size_t i = 0; i < layers.size(); ++i) out[i] = layers[i]->finish(x, std::move(out[i]));
  return out;
}

}  // namespace mneme
