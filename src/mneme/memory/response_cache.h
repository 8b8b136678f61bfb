// ResponseCache: responses that are given again to later prompts close to their own, each behind a threshold of its own
// that is learned from where it would have been right.
//
//   a prompt      nearest entry by cosine, at similarity s; with probability tau(s) the prompt is explored, else the
//                 entry's response is given
//   exploring     the caller asks its model; c = 1 if the entry's response is the same as what that says, else 0.
//                 (s, c) joins the entry's observations O; if c = 0, prompt and response become an entry
//   fit           P(c = 1 | s) = 1 / (1 + exp(-gamma (s - t))) over O, (0, 0) and (1, 1), by Newton on (1, s)
//   variance      var(t) = g' (X' W X)^-1 g, g = (-1/gamma, b/gamma^2), t = -b/gamma, W = diag(p (1 - p))
//   separated     all right ones at or above all wrong ones: the likelihood has no maximum; t lies halfway between, the
//                 variance is tabulated
//   tau           min over 50 values of epsilon of 1 - delta / (1 - (1 - epsilon) L(s; t + z_(1-epsilon) sd(t), gamma)),
//                 within [0, 1]
//
// holds     at most `capacity` entries of an embedding, a response and up to kMaxObservations observations; the one that
//           was used longest ago gives way, and what was observed of it with it
// cost      a scan of the embeddings and one fit a prompt
// source    Schroeder et al. 2025, arXiv:2502.03771 (VectorQ, later vCache), as in its published code
// departs   a tie between right and wrong counts as separated; the tabulated variance falls as 1/n, from 0.035 at 6
//           observations to 0.00525 at 40 and behind; where more similarity is no better, always explored
#pragma once

#include "mneme/search/dense_index.h"

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mneme {

/// Whether a cached response would have been right for a later prompt, at what similarity.
struct CacheObservation {
  double similarity = 0;
  bool right = false;
};

/// The logistic curve of one entry.
struct ThresholdFit {
  double threshold = 0;    ///< t, within [0, 1]: where right and wrong are as likely
  double slope = 0;        ///< gamma, above 0
  double variance = 0;     ///< of t
  bool separated = false;  ///< the variance is the tabulated one
};

/// Similarities are observed and compared in thousandths, which keeps fits of near repetitions stable.
double rounded_similarity(double similarity);
/// Fits the curve to observations as they are; nothing where all are right or all wrong, or where the chance to be right
/// does not grow with similarity.
std::optional<ThresholdFit> fit_threshold(std::span<const CacheObservation> observations);
/// The variance of the threshold where right and wrong are separated, of n observations.
double separated_variance(std::int64_t n);
/// The probability to explore at a similarity, within [0, 1]: what keeps the chance of a wrong response at most `delta`.
double explore_probability(const ThresholdFit& fit, double similarity, double delta);

/// When a cached response may answer a later prompt.
class ReusePolicy {
 public:
  static constexpr std::string_view kKind = "reuse_policy";
  static constexpr std::string_view kKindHelp =
      "when a cached answer is given again to a later question";
  using Make = std::unique_ptr<ReusePolicy>();

  virtual ~ReusePolicy() = default;
  /// The probability, within [0, 1], that a prompt at this similarity to an entry goes to the model in place of getting
  /// the entry's response. `observations` are what was observed of the entry.
  [[nodiscard]] virtual double explore_probability(std::span<const CacheObservation> observations,
                                                   double similarity) const = 0;
  /// Whether a prompt that went to the model becomes an entry also where the entry it met was right.
  [[nodiscard]] virtual bool keeps_what_was_right() const = 0;
  /// Entries at most.
  [[nodiscard]] virtual std::int64_t capacity() const = 0;
};

/// Whether two responses say the same: equal without regard to case, runs of white space, and punctuation and white space
/// at their ends.
bool same_response(std::string_view a, std::string_view b);

/// The cache. It calls no model and knows no file: whoever uses it says what a fresh response was, and keeps entries where
/// it likes. All that it decides follows from policy, seed, restored entries and the prompts in their order.
class ResponseCache {
 public:
  static constexpr std::size_t kMaxObservations = 4096;  ///< of an entry; then the oldest goes
  static constexpr std::int64_t kMaxId = std::int64_t{1} << 60;

  struct Entry {
    std::int64_t id = 0;  ///< from 1 to kMaxId
    std::vector<float> embedding;
    std::string response;
    std::vector<CacheObservation> observations;
    std::int64_t last_use = 0;  ///< number of the prompt that last met it
  };
  /// What becomes of one prompt.
  struct Decision {
    std::int64_t prompt = 0;            ///< its number
    bool hit = false;                   ///< the entry's response is given; else the model is asked
    std::optional<std::int64_t> entry;  ///< the nearest one; none in an empty cache
    double similarity = 0;              ///< cosine with it, in thousandths
    double explore_probability = 1;
    bool operator==(const Decision&) const = default;
  };
  /// What a fresh response changed.
  struct Learned {
    std::optional<bool> right;          ///< whether the nearest entry's response was the same
    std::optional<std::int64_t> added;  ///< the entry that the prompt became
    std::vector<std::int64_t> evicted;  ///< the entries that gave way
    bool operator==(const Learned&) const = default;
  };
  /// One prompt as a log keeps it.
  struct LoggedPrompt {
    std::vector<float> embedding;
    std::optional<std::string> fresh;  ///< what the model said, if it was asked
  };
  using SameResponse = std::function<bool(std::string_view, std::string_view)>;

  /// An empty cache over embeddings of `width` numbers, whose next prompt has the number `next_prompt`. Throws `invalid`
  /// for a width that DenseIndex does not take.
  ResponseCache(std::shared_ptr<const ReusePolicy> policy, std::int64_t width, std::uint64_t seed,
                std::int64_t next_prompt = 0, SameResponse same = same_response);

  /// Puts an entry back that was stored. False, and nothing is changed, for one that cannot be of such a cache: an id that
  /// is taken or out of range, an embedding of another width or length than 1, too many observations or impossible ones.
  bool restore(Entry entry);
  /// Entries beyond the capacity, which go; for after restoring.
  std::vector<std::int64_t> shrink();

  /// Decides over the next prompt by its embedding, a unit vector; every prompt draws from a generator of its own. Throws
  /// `invalid` as DenseIndex::search.
  Decision decide(std::span<const float> embedding);
  /// Learns from the model's response to a prompt that was no hit; without `keep` it becomes no entry.
  Learned learn(const Decision& decision, std::span<const float> embedding, std::string_view fresh,
                bool keep = true);
  /// Goes through a log as if its prompts came again. Throws `mismatch` where one wants the model whose response the log
  /// does not have: it is of another policy, seed or start.
  std::vector<Decision> replay(std::span<const LoggedPrompt> log);

  [[nodiscard]] const Entry* find(std::int64_t id) const;
  [[nodiscard]] std::int64_t size() const { return static_cast<std::int64_t>(entries_.size()); }
  /// The number that the next prompt gets.
  [[nodiscard]] std::int64_t next_prompt() const { return next_prompt_; }

 private:
  std::shared_ptr<const ReusePolicy> policy_;
  std::uint64_t seed_;
  std::int64_t next_prompt_, next_id_ = 1;
  SameResponse same_;
  DenseIndex index_;
  std::map<std::int64_t, Entry> entries_;
};

}  // namespace mneme
