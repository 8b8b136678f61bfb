// State: all that a sequence model carries from one call to the next. Nothing stateful lives elsewhere.
#pragma once

#include "mneme/core/bytes.h"
#include "mneme/core/generator.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mneme {

/// An entry that is more than a tensor: a paged key/value store, for example. Rows are the sequences of a batch.
/// Kinds are found by name in the registry when a State is loaded.
class StateStore {
 public:
  static constexpr std::string_view kKind = "state_store";
  static constexpr std::string_view kKindHelp = "what a layer keeps that is not a plain tensor";
  using Make = std::unique_ptr<StateStore>();

  virtual ~StateStore() = default;
  /// The name it is enrolled under.
  [[nodiscard]] virtual std::string_view name() const = 0;
  [[nodiscard]] virtual std::int64_t rows() const = 0;
  /// Copy on write: cheap, and neither side ever sees the other's changes.
  [[nodiscard]] virtual std::unique_ptr<StateStore> fork() const = 0;
  virtual void save(ByteWriter&) const = 0;
  virtual void load(ByteReader&) = 0;  ///< throws Error(corrupt)
  /// Forgets the last n tokens of every row; throws Error(unsupported) where something was evicted or merged away.
  virtual void rewind(std::int64_t n) = 0;
  [[nodiscard]] virtual std::unique_ptr<StateStore> select(
      const std::vector<std::int64_t>& rows) const = 0;
  /// The rows of all stores, one after another; lengths may differ.
  [[nodiscard]] virtual std::unique_ptr<StateStore> concat(
      const std::vector<const StateStore*>& others) const = 0;
  virtual void reset(const std::vector<bool>& rows) = 0;
  virtual void detach() = 0;
};

/// What a State says of itself when it is saved; `load` checks nothing of it: its user does.
struct StateHeader {
  std::string kind, spec, model_digest, compute, level;
  std::int64_t version = 1;
  bool operator==(const StateHeader&) const = default;
};

/// A discrete decision taken while running (a routed expert, a kept entry), so that a run can be explained and replayed.
struct Choice {
  std::string what;
  std::int64_t at = 0, value = 0;
  bool operator==(const Choice&) const = default;
};

/// Named tensors, stores and child States, counters, a generator and a log of choices. Copies share everything until
/// one side writes (`fork`); the first dimension of every tensor is the row.
class State {
 public:
  State() = default;
  State(std::initializer_list<std::pair<const std::string, at::Tensor>> tensors);
  State(State&&) = default;
  State& operator=(State&&) = default;
  State(const State&) = delete;  // `fork` says what is meant
  State& operator=(const State&) = delete;

  [[nodiscard]] bool has(std::string_view name) const;
  [[nodiscard]] std::vector<std::string> names() const;
  /// A tensor to read; throws Error(not_found).
  [[nodiscard]] const at::Tensor& tensor(std::string_view name) const;
  /// A tensor to change in place: unshared from every fork first; throws Error(not_found).
  at::Tensor& tensor(std::string_view name);
  /// Puts a tensor in without copying what stood there.
  void set(std::string_view name, at::Tensor value);

  /// The child State of that name, made empty on first use.
  State& child(std::string_view name);
  [[nodiscard]] const State& child(std::string_view name) const;

  /// The store of that name, unshared; throws Error(not_found).
  StateStore& store(std::string_view name);
  [[nodiscard]] const StateStore& store(std::string_view name) const;
  void set(std::string_view name, std::unique_ptr<StateStore> store);

  /// A counter, 0 at first. Counters are not per row and survive rewind.
  std::int64_t& counter(std::string_view name);

  /// The next position of every row; empty until the first forward.
  std::vector<std::int64_t> positions;
  Generator generator;
  std::vector<Choice> choices;
  StateHeader header;

  [[nodiscard]] bool empty() const;
  /// Rows held, 0 when nothing is.
  [[nodiscard]] std::int64_t rows() const;
  /// Exactly what `save` writes.
  [[nodiscard]] std::int64_t bytes() const;
  [[nodiscard]] std::string save() const;
  /// Throws Error(corrupt) on anything that `save` did not write.
  [[nodiscard]] static State load(std::string_view bytes);

  [[nodiscard]] State fork() const;
  /// Forgets the last n tokens; throws Error(unsupported) when an entry cannot, and then changes nothing.
  void rewind(std::int64_t n);
  /// The given rows in the given order; a row may be taken more than once. Throws Error(invalid) on a row not held.
  [[nodiscard]] State select(const std::vector<std::int64_t>& rows) const;
  /// The rows of all states, one after another; throws Error(mismatch) if they hold different entries.
  [[nodiscard]] static State concat(const std::vector<const State*>& states);
  /// Rows whose flag is set start over: tensors become zero, stores empty, positions 0.
  /// Throws Error(invalid) unless there is one flag a row.
  void reset(const std::vector<bool>& rows);
  /// Cuts the autograd history, keeps the values.
  void detach();

 private:
  void write(ByteWriter&) const;
  static State read(ByteReader&, int depth);
  std::map<std::string, std::shared_ptr<at::Tensor>, std::less<>> tensors_;
  std::map<std::string, std::shared_ptr<StateStore>, std::less<>> stores_;
  std::map<std::string, std::unique_ptr<State>, std::less<>> children_;
  std::map<std::string, std::int64_t, std::less<>> counters_;
};

}  // namespace mneme
