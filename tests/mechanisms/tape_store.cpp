// tape_store: a state store that only the tests know; it keeps the list of numbers that it was loaded with.
//
// spec      tape_store
// holds     one list of int64 a row; rows share their list until one side changes it
#include "mneme/core/registry.h"
#include "mneme/core/state.h"

#include <algorithm>
#include <memory>
#include <vector>

namespace mneme::mechanisms::tape_store {

class TapeStore final : public StateStore {
 public:
  using Tape = std::shared_ptr<const std::vector<std::int64_t>>;

  TapeStore() = default;
  explicit TapeStore(std::vector<Tape> tapes) : tapes_(std::move(tapes)) {}

  [[nodiscard]] std::string_view name() const override { return "tape_store"; }
  [[nodiscard]] std::int64_t rows() const override {
    return static_cast<std::int64_t>(tapes_.size());
  }
  [[nodiscard]] std::unique_ptr<StateStore> fork() const override {
    return std::make_unique<TapeStore>(tapes_);
  }

  void save(ByteWriter& out) const override {
    out.value(static_cast<std::uint64_t>(tapes_.size()));
    for (const auto& tape : tapes_) {
      out.value(static_cast<std::uint64_t>(tape->size()));
      out.raw(tape->data(), tape->size() * sizeof(std::int64_t));
    }
  }
  void load(ByteReader& in) override {
    tapes_.clear();
    for (auto rows = in.count(8); rows > 0; --rows) {
      std::vector<std::int64_t> tape;
      for (auto n = in.count(8); n > 0; --n) tape.push_back(in.value<std::int64_t>());
      tapes_.push_back(std::make_shared<const std::vector<std::int64_t>>(std::move(tape)));
    }
  }
  /// A tape that starts with a negative number cannot be rewound.
  void rewind(std::int64_t n) override {
    for (auto& tape : tapes_) {
      if (!tape->empty() && tape->front() < 0) throw Error(Errc::unsupported, "this tape is glued");
      const auto left = std::max<std::int64_t>(0, static_cast<std::int64_t>(tape->size()) - n);
      tape = std::make_shared<const std::vector<std::int64_t>>(tape->begin(), tape->begin() + left);
    }
  }
  [[nodiscard]] std::unique_ptr<StateStore> select(
      const std::vector<std::int64_t>& rows) const override {
    std::vector<Tape> out;
    for (auto row : rows) out.push_back(tapes_.at(static_cast<std::size_t>(row)));
    return std::make_unique<TapeStore>(std::move(out));
  }
  [[nodiscard]] std::unique_ptr<StateStore> concat(
      const std::vector<const StateStore*>& others) const override {
    auto out = tapes_;
    for (const auto* other : others) {
      const auto* store = dynamic_cast<const TapeStore*>(other);
      if (!store) throw Error(Errc::mismatch, "a tape can only be joined with tapes");
      out.insert(out.end(), store->tapes_.begin(), store->tapes_.end());
    }
    return std::make_unique<TapeStore>(std::move(out));
  }
  void reset(const std::vector<bool>& rows) override {
    for (std::size_t i = 0; i < tapes_.size(); ++i) {
      if (rows.at(i)) tapes_[i] = std::make_shared<const std::vector<std::int64_t>>();
    }
  }
  void detach() override {}

 private:
  std::vector<Tape> tapes_;
};

void enrol(Registry& r) {
  r.add<StateStore, TapeStore>("tape_store", "lists of numbers, for the tests");
}

}  // namespace mneme::mechanisms::tape_store
