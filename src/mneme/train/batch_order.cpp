#include "mneme/train/batch_order.h"

#include "mneme/core/error.h"

#include <algorithm>
#include <numeric>

namespace mneme {
namespace {

// Enough examples that a batch's are of nearly the same length, few enough to hold.
constexpr std::int64_t kWindowBatches = 32, kWindowExamples = 256;
// What generators are split for.
constexpr std::uint64_t kOrder = 1, kExamples = 2, kBatches = 3;

/// Uniform below n: 64 random bits make the bias of the remainder too small to matter.
std::size_t below(Generator& generator, std::size_t n) {
  const std::uint64_t high = generator.next(), low = generator.next();
  return static_cast<std::size_t>(((high << 32) | low) % n);
}

template <class T>
void shuffle(std::vector<T>& items, Generator generator) {
  for (auto n = items.size(); n > 1; --n) std::swap(items[n - 1], items[below(generator, n)]);
}

}  // namespace

BatchOrder::BatchOrder(const Task& task, Size size, std::uint64_t seed)
    : task_(task), size_(size), generator_(seed) {
  if (task.size() < 1) throw Error(Errc::invalid, "the task has no training examples");
  MNEME_ASSERT(size.examples > 0 || size.tokens > 0);
}

void BatchOrder::go_to(Place place) {
  place_ = place;
  filled_ = false;
}

void BatchOrder::fill() {
  const auto pass = static_cast<std::uint64_t>(place_.pass);
  if (filled_pass_ != place_.pass) {
    order_.resize(static_cast<std::size_t>(task_.size()));
    std::iota(order_.begin(), order_.end(), std::int64_t{0});
    shuffle(order_, generator_.split(kOrder).split(pass));
    filled_pass_ = place_.pass;
  }
  const auto window = size_.tokens > 0 ? kWindowExamples : kWindowBatches * size_.examples;
  const auto total = task_.size();
  if (place_.pass < 0 || place_.window < 0 || place_.window >= (total + window - 1) / window) {
    throw Error(Errc::invalid, "a place in the order of examples that does not exist");
  }
  const auto begin = place_.window * window, end = std::min(total, begin + window);
  batches_.clear();
  std::vector<DrawnExample> drawn;
  for (auto i = begin; i < end; ++i) {
    const auto index = order_[static_cast<std::size_t>(i)];
    auto own = generator_.split(kExamples).split(pass).split(static_cast<std::uint64_t>(index));
    drawn.push_back({index, place_.pass, task_.example(index, place_.pass, own)});
  }
  std::stable_sort(drawn.begin(), drawn.end(), [](const auto& a, const auto& b) {
    return a.content.tokens() < b.content.tokens();
  });
  for (auto& example : drawn) {
    bool room = false;
    if (!batches_.empty()) {
      const auto with = static_cast<std::int64_t>(batches_.back().size()) + 1;
      // Sorted: the newest is the longest, which the others are padded to.
      room = size_.tokens > 0 ? with * example.content.tokens() <= size_.tokens
                              : with <= size_.examples;
    }
    if (!room) batches_.emplace_back();
    batches_.back().push_back(std::move(example));
  }
  shuffle(batches_,
          generator_.split(kBatches).split(pass).split(static_cast<std::uint64_t>(place_.window)));
  filled_ = true;
}

std::vector<DrawnExample> BatchOrder::next() {
  if (!filled_) fill();
  if (place_.batch < 0 || place_.batch >= static_cast<std::int64_t>(batches_.size())) {
    throw Error(Errc::invalid, "a place in the order of examples that does not exist");
  }
  auto out = std::move(batches_[static_cast<std::size_t>(place_.batch)]);
  if (++place_.batch < static_cast<std::int64_t>(batches_.size())) return out;
  const auto window = size_.tokens > 0 ? kWindowExamples : kWindowBatches * size_.examples;
  place_.batch = 0;
  if (++place_.window * window >= task_.size()) {
    place_.window = 0;
    ++place_.pass;
  }
  filled_ = false;
  return out;
}

}  // namespace mneme
