#include "mneme/core/params.h"

#include "mneme/core/error.h"
#include "mneme/core/generator.h"
#include "mneme/core/nearest.h"

#include <ATen/ATen.h>

#include <cmath>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <set>

namespace mneme {

struct Params::Set {
  std::map<std::string, std::shared_ptr<Parameter>, std::less<>> by_name;
  std::uint64_t seed = 0;
};

namespace {

std::uint64_t hash_name(
    std::string_view name) {  // FNV-1a: stable across platforms, unlike std::hash
  std::uint64_t hash = 1469598103934665603ull;
  for (unsigned char c : name) hash = (hash ^ c) * 1099511628211ull;
  return hash;
}

at::Tensor fresh(const std::vector<std::int64_t>& sizes, Init init, Generator generator) {
  if (init == Init::zeros) return at::zeros(sizes);
  if (init == Init::ones) return at::ones(sizes);
  auto out = at::empty(sizes);
  auto* data = out.mutable_data_ptr<float>();
  const double bound = 1.0 / std::sqrt(static_cast<double>(sizes.empty() ? 1 : sizes.back()));
  for (std::int64_t i = 0; i < out.numel(); ++i) {
    data[i] =
        static_cast<float>(init == Init::normal_002 ? 0.02 * generator.normal()
                                                    : bound * (2.0 * generator.uniform() - 1.0));
  }
  return out;
}

}  // namespace

std::vector<std::int64_t> Parameter::sizes() const {
  return stored ? stored->sizes() : tensor.sizes().vec();
}

Params::Params() : set_(std::make_shared<Set>()) {}

Params Params::scope(std::string_view name) const {
  Params out(*this);
  out.prefix_ += std::string(name) + ".";
  return out;
}

std::shared_ptr<Parameter> Params::find(std::string_view name) const {
  const auto found = set_->by_name.find(prefix_ + std::string(name));
  return found == set_->by_name.end() ? nullptr : found->second;
}

std::shared_ptr<Parameter> Params::weight(std::string_view name,
                                          const std::vector<std::int64_t>& sizes, Init init) {
  const auto full = prefix_ + std::string(name);
  if (auto existing = find(name)) {
    if (existing->sizes() != sizes) {
      throw Error(Errc::mismatch, fmt::format("weight '{}' has the sizes {}, the model wants {}",
                                              full, existing->sizes(), sizes));
    }
    return existing;
  }
  auto parameter = std::make_shared<Parameter>();
  parameter->tensor = fresh(sizes, init, Generator(set_->seed).split(hash_name(full)));
  set_->by_name.emplace(full, parameter);
  return parameter;
}

void Params::set(std::string_view name, Parameter parameter) {
  set_->by_name.insert_or_assign(prefix_ + std::string(name),
                                 std::make_shared<Parameter>(std::move(parameter)));
}

std::vector<std::string> Params::names(std::string_view glob) const {
  std::vector<std::string> out;
  for (auto it = set_->by_name.lower_bound(prefix_);
       it != set_->by_name.end() && it->first.starts_with(prefix_); ++it) {
    auto name = it->first.substr(prefix_.size());
    if (glob_match(glob, name)) out.push_back(std::move(name));
  }
  return out;
}

std::int64_t Params::attach(std::string_view glob,
                            const std::shared_ptr<const Adapter>& adapter) const {
  const auto matching = names(glob);
  for (const auto& name : matching) find(name)->adapters.push_back(adapter);
  return static_cast<std::int64_t>(matching.size());
}

std::int64_t Params::count() const {
  std::set<const Parameter*> seen;
  std::int64_t out = 0;
  for (const auto& name : names()) {
    const auto parameter = find(name);
    if (!parameter->tied_to.empty() || !seen.insert(parameter.get()).second) continue;
    std::int64_t n = 1;
    for (auto size : parameter->sizes()) n *= size;
    out += n;
  }
  return out;
}

void Params::seed(std::uint64_t seed) { set_->seed = seed; }

void Params::requires_grad(bool on) const {
  for (const auto& name : names()) {
    auto parameter = find(name);
    if (parameter->tensor.defined() && at::isFloatingType(parameter->tensor.scalar_type())) {
      parameter->tensor.set_requires_grad(on && !parameter->frozen);
    }
  }
}

}  // namespace mneme
