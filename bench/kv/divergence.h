// Divergence: how far the predictions behind a compressed context are from those behind the whole one.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

namespace mneme::bench {

/// Of every token of a text that both were shown.
struct Divergence {
  std::vector<double> kl;         ///< KL(full || method), nats
  std::vector<double> agreement;  ///< 1 where both think the same token most likely, else 0
  std::vector<double> nll;        ///< of the token that came, by the method, nats
};

/// Compares logits [T,V] of the full cache and of a method with the tokens [T] that came; in f64, whatever they are.
[[nodiscard]] Divergence divergence(const at::Tensor& full, const at::Tensor& method,
                                    std::span<const std::int32_t> came);

/// Negative log-likelihood in nats of the tokens [T] that came, from logits [T,V].
[[nodiscard]] std::vector<double> nll_of(const at::Tensor& logits,
                                         std::span<const std::int32_t> came);

}  // namespace mneme::bench
