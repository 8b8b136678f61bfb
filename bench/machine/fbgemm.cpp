#include "bench/machine/fbgemm.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

namespace mneme::bench {
namespace {

/// libtorch says that it will drop its old way to FBGEMM, which is the only one that ATen's headers declare.
class Silent final : public c10::WarningHandler {
 public:
  void process(const c10::Warning& /*warning*/) override {}
};

}  // namespace

std::function<at::Tensor(const at::Tensor& x)> fbgemm_product(const at::Tensor& weight) {
  Silent silent;
  const c10::WarningUtils::WarningHandlerGuard quiet(&silent);
  try {
    const auto [integers, totals, scale, zero] = at::fbgemm_linear_quantize_weight(weight);
    const auto packed = at::fbgemm_pack_quantized_matrix(integers);
    auto product = [=, integers = integers, totals = totals, scale = scale, zero = zero,
                    bias = at::zeros({weight.size(0)})](const at::Tensor& x) {
      return at::fbgemm_linear_int8_weight_fp32_activation(x, integers, packed, totals, scale, zero,
                                                           bias);
    };
    static_cast<void>(product(at::ones({1, weight.size(1)})));  // it warns once, and then is silent
    return product;
  } catch (const c10::Error&) {
    return nullptr;
  }
}

}  // namespace mneme::bench
