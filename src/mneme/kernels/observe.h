// Row and column statistics of softmax attention over paged keys, without its queries x entries matrix.
#pragma once

#include "mneme/kernels/attend.h"

#include <cstdint>
#include <span>

namespace mneme::kernels {

/// The queries of one KV head of one sequence, as attend took them, and what to observe of their weights
///   a_te = exp(scale q_t'k_e + log_mass_e - lse_t) where e is visible to t, else 0,
/// e over the entries of all pages in the order of the pages. Everything is borrowed; outputs are contiguous, null
/// where not wanted, and overlap nothing. Sums are added to what is there, so that calls over blocks of queries, and
/// calls over segments of entries that share one softmax, add up.
struct ObserveTask {
  const float* q;  ///< [heads,T,d], the d numbers of a query contiguous
  std::int64_t heads, T, q_head_stride, q_time_stride;
  const std::int64_t* q_positions;  ///< [T]
  std::span<const PageView> pages;  ///< in any order; their values are not read

  /// [heads,T] as attend gave it, for these entries or for more of them: other segments, a wider window. Where it is
  /// -inf all weights are 0. From products of bf16, rows sum to 1 within the rounding of these.
  const float* lse;

  float* column_sums = nullptr;        ///< [heads,entries] += sum_t g_t a_te
  const float* row_weights = nullptr;  ///< [T] g; null: ones

  /// [heads,T,functionals] += sum_e a_te f_je; with f 1 for the entries that a policy keeps, else 0: what it retains.
  float* row_sums = nullptr;
  const float* columns = nullptr;  ///< [functionals,entries] f
  std::int64_t functionals = 0;

  /// [heads,T] += -sum_e a_te ln a_te; over all entries that lse counts, this is lse_t - sum_e a_te s_te, s the scores.
  float* entropy = nullptr;

  float* weights = nullptr;  ///< [heads,T,entries] = a_te

  /// [heads,entries] = max(what is there, max_t a_te); weights that are NaN are passed over.
  float* column_most = nullptr;
};

/// Computes the scores a second time and from them what each task wants; no other memory than scratch is used, but for
/// up to 64 partial results of each row sum. Work is cut by pages, always in the same way: results do not depend on the
/// number of threads. Throws Error (invalid) where attend would, and where a task lacks what its outputs need.
void observe(std::span<const ObserveTask> tasks, std::int64_t d, float scale,
             const Visibility& visibility);

}  // namespace mneme::kernels
