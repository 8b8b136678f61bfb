#include "mneme/mixers/mixer.h"

#include "mneme/core/error.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <fmt/format.h>

namespace mneme {
namespace {

/// The call for some tokens of the tree: each stands one position behind its parent.
Call along(const Call& call, const std::vector<std::int64_t>& path) {
  Call out = call;
  const auto B = call.positions.size(0), n = static_cast<std::int64_t>(path.size());
  out.positions = call.positions.narrow(1, 0, 1) + at::arange(n, at::kLong);
  out.positions = out.positions.expand({B, n}).contiguous();
  out.lengths.clear();
  return out;
}

}  // namespace

at::Tensor Mixer::verify(const at::Tensor& x, const std::vector<std::int64_t>& parent,
                         const State& state, Call& call) const {
  const auto T = x.size(1);
  if (static_cast<std::int64_t>(parent.size()) != T)
    throw Error(Errc::invalid,
                fmt::format("a tree of {} tokens was given {} parents", T, parent.size()));
  std::vector<at::Tensor> out;
  for (std::int64_t t = 0; t < T; ++t) {
    std::vector<std::int64_t> path;
    for (auto node = t; node >= 0; node = parent[static_cast<std::size_t>(node)]) {
      if (parent[static_cast<std::size_t>(node)] >= node)
        throw Error(Errc::invalid, "the parent of a tree's token must come before it");
      path.insert(path.begin(), node);
    }
    auto fork = state.fork();
    auto path_call = along(call, path);
    out.push_back(forward(x.index_select(1, at::tensor(path, at::kLong)), fork, path_call)
                      .narrow(1, static_cast<std::int64_t>(path.size()) - 1, 1));
  }
  return at::cat(out, 1);
}

void Mixer::commit(const at::Tensor& x, const std::vector<std::int64_t>& path, State& state,
                   Call& call) const {
  auto path_call = along(call, path);
  static_cast<void>(forward(x.index_select(1, at::tensor(path, at::kLong)), state, path_call));
}

}  // namespace mneme
