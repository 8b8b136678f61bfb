// Params: the named weights of a model. A mechanism asks for what it needs by name; a loaded checkpoint has put it
// there, or it is made fresh. "Options" are what a spec says, "Params" are tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace mneme {

/// A weight kept in its stored form (quantized, memory-mapped): never trained itself, dequantized by rows where needed.
class StoredWeight {
 public:
  virtual ~StoredWeight() = default;
  [[nodiscard]] virtual std::vector<std::int64_t> sizes() const = 0;
  [[nodiscard]] virtual std::int64_t bytes() const = 0;
  [[nodiscard]] virtual std::string type() const = 0;
  /// Rows [begin, end) as [end - begin, in] in `dtype` (float or bfloat16).
  [[nodiscard]] virtual at::Tensor rows(std::int64_t begin, std::int64_t end,
                                        at::ScalarType dtype) const = 0;
};

/// A low-rank update of a matrix [out, in], y += scale B (A x), as fused products read it. Its memory is its adapter's.
struct LowRank {
  at::ScalarType type = at::kFloat;  ///< of the numbers: f32, f16 or bf16
  std::int64_t in = 0, out = 0, rank = 0;
  float scale = 1;
  const void* a = nullptr;  ///< [rank, in]
  const void* b =
      nullptr;  ///< B as [ceil(out / 16), rank, 16]: sixteen rows together; zero past `out`
};

/// Something attached to a linear layer that changes its output: a low-rank update, a mask, an edit.
class Adapter {
 public:
  virtual ~Adapter() = default;
  /// x [..., in], y = W x [..., out] so far -> the new y. May write to y where no gradient is recorded.
  [[nodiscard]] virtual at::Tensor apply(const at::Tensor& x, const at::Tensor& y) const = 0;
  /// All that the adapter does, where that is a low-rank update whose numbers stay as they are: products then need not
  /// call apply(). Null for every other adapter.
  [[nodiscard]] virtual const LowRank* low_rank() const { return nullptr; }
};

/// One named weight.
struct Parameter {
  at::Tensor tensor;                           ///< undefined while the weight is only stored
  std::shared_ptr<const StoredWeight> stored;  ///< set for loaded weights in their file's form
  std::vector<std::shared_ptr<const Adapter>> adapters;  ///< up to here: what every product reads
  bool frozen = false;
  std::string group;    ///< optimizers may treat groups apart
  std::string tied_to;  ///< name of the parameter that this one is

  [[nodiscard]] std::vector<std::int64_t> sizes() const;
};

/// How a fresh weight starts.
enum class Init { zeros, ones, normal_002, uniform_fan_in };

/// A view of one shared set of parameters under a prefix; copies are views of the same set.
class Params {
 public:
  Params();
  /// The same set, with `name` + "." put before every name.
  [[nodiscard]] Params scope(std::string_view name) const;

  /// The parameter under this name. One that exists must have these sizes, else Error(mismatch); one that does not is
  /// made in f32 by `init` from a seed of the set and the name's own.
  std::shared_ptr<Parameter> weight(std::string_view name, const std::vector<std::int64_t>& sizes,
                                    Init init = Init::uniform_fan_in);
  /// The parameter or null.
  [[nodiscard]] std::shared_ptr<Parameter> find(std::string_view name) const;
  [[nodiscard]] bool has(std::string_view name) const { return find(name) != nullptr; }
  void set(std::string_view name, Parameter parameter);

  /// Names under this prefix (without it), sorted; `glob` as in glob_match.
  [[nodiscard]] std::vector<std::string> names(std::string_view glob = "*") const;
  /// Attaches to every parameter that matches; returns how many did.
  std::int64_t attach(std::string_view glob, const std::shared_ptr<const Adapter>& adapter) const;
  /// Numbers in all distinct parameters.
  [[nodiscard]] std::int64_t count() const;
  /// Seed of the fresh weights to come; the same seed and names give the same weights in any order of asking.
  void seed(std::uint64_t seed);
  /// Trainable tensors (not frozen) require grad from now on.
  void requires_grad(bool on) const;

 private:
  struct Set;
  std::shared_ptr<Set> set_;
  std::string prefix_;
};

}  // namespace mneme
