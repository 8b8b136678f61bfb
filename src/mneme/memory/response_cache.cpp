#include "mneme/memory/response_cache.h"

#include "mneme/core/error.h"
#include "mneme/core/generator.h"
#include "mneme/text/white_space.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <fmt/format.h>
#include <utility>

namespace mneme {
namespace {

constexpr std::size_t kGrid = 50;
constexpr double kGridMargin = 1e-6;
constexpr double kThousand = 1000;
// Where the curve of separated observations ends: as steep as makes the nearest of them this sure.
constexpr double kSureWithin = 1e-8;
constexpr int kNewtonSteps = 200;
constexpr int kHalvings = 40;

double logistic(double x) {
  return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x));
}

/// log P of an observation whose log-odds are x.
double log_likelihood(double x, bool right) {
  const double y = right ? x : -x;
  return y >= 0 ? -std::log1p(std::exp(-y)) : y - std::log1p(std::exp(y));
}

/// The x below which a standard normal number lies with probability p, by bisection.
double normal_quantile(double p) {
  double low = -10, high = 10;
  while (high - low > 1e-13) {
    const double middle = (low + high) / 2;
    (std::erfc(-middle / std::sqrt(2.0)) / 2 < p ? low : high) = middle;
  }
  return (low + high) / 2;
}

struct GridPoint {
  double epsilon, quantile;  // z_(1 - epsilon)
};

const std::array<GridPoint, kGrid>& grid() {
  static const auto points = [] {
    std::array<GridPoint, kGrid> out{};
    for (std::size_t i = 0; i < kGrid; ++i) {
      const double epsilon = kGridMargin + (1 - 2 * kGridMargin) * static_cast<double>(i) /
                                               static_cast<double>(kGrid - 1);
      out[i] = {epsilon, normal_quantile(1 - epsilon)};
    }
    return out;
  }();
  return points;
}

/// The least and the greatest similarity of the right and of the wrong ones.
struct Extent {
  double least = 2, greatest = -2;
  void take(double s) {
    least = std::min(least, s);
    greatest = std::max(greatest, s);
  }
  [[nodiscard]] bool empty() const { return greatest < least; }
};

bool unit_length(std::span<const float> v) {
  double squared = 0;
  for (const double x : v) squared += x * x;
  return std::isfinite(squared) && std::abs(std::sqrt(squared) - 1) <= 0.005;
}

bool is_ascii_punctuation(unsigned char c) {
  return (c >= 33 && c <= 47) || (c >= 58 && c <= 64) || (c >= 91 && c <= 96) ||
         (c >= 123 && c <= 126);
}

std::string normalised(std::string_view text) {
  for (std::size_t before = text.size() + 1; text.size() < before;) {
    before = text.size();
    text = text::trimmed(text);
    while (!text.empty() && is_ascii_punctuation(static_cast<unsigned char>(text.front())))
      text.remove_prefix(1);
    while (!text.empty() && is_ascii_punctuation(static_cast<unsigned char>(text.back())))
      text.remove_suffix(1);
  }
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    if (const auto n = text::space_at(text, i); n > 0) {
      if (out.back() != ' ') out += ' ';
      i += n;
    } else {
      const char c = text[i++];
      out += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    }
  }
  return out;
}

}  // namespace

double rounded_similarity(double similarity) {
  return std::round(similarity * kThousand) / kThousand;
}

double separated_variance(std::int64_t n) {
  return 0.21 / static_cast<double>(std::clamp<std::int64_t>(n, 6, 40));
}

std::optional<ThresholdFit> fit_threshold(std::span<const CacheObservation> observations) {
  Extent right, wrong;
  double mean = 0;
  for (const auto& o : observations) {
    (o.right ? right : wrong).take(o.similarity);
    mean += o.similarity;
  }
  if (right.empty() || wrong.empty() || right.greatest <= wrong.least) return std::nullopt;
  const auto n = static_cast<std::int64_t>(observations.size());
  ThresholdFit fit;
  if (right.least >= wrong.greatest) {
    fit.separated = true;
    fit.threshold = std::clamp((right.least + wrong.greatest) / 2, 0.0, 1.0);
    fit.slope = -2 * std::log(kSureWithin) / std::max(right.least - wrong.greatest, 1 / kThousand);
    fit.variance = separated_variance(n);
    return fit;
  }

  // Newton on a + gamma z with z = s - mean, where the Hessian is better conditioned; t and its variance do not depend on
  // the origin.
  mean /= static_cast<double>(n);
  const auto value = [&](double a, double gamma) {
    double sum = 0;
    for (const auto& o : observations)
      sum += log_likelihood(a + gamma * (o.similarity - mean), o.right);
    return sum;
  };
  double a = 0, gamma = 0, likelihood = value(a, gamma);
  for (int step = 0; step < kNewtonSteps; ++step) {
    double g0 = 0, g1 = 0, h00 = 0, h01 = 0, h11 = 0;
    for (const auto& o : observations) {
      const double z = o.similarity - mean, p = logistic(a + gamma * z), w = p * (1 - p);
      const double residual = (o.right ? 1 : 0) - p;
      g0 += residual;
      g1 += residual * z;
      h00 += w;
      h01 += w * z;
      h11 += w * z * z;
    }
    const double determinant = h00 * h11 - h01 * h01;
    if (!(determinant > 1e-300)) return std::nullopt;
    const double da = (h11 * g0 - h01 * g1) / determinant,
                 dgamma = (h00 * g1 - h01 * g0) / determinant;
    if (g0 * da + g1 * dgamma < 1e-20) {
      if (gamma <= 0) return std::nullopt;
      fit.slope = gamma;
      fit.threshold = std::clamp(mean - a / gamma, 0.0, 1.0);
      const double d0 = -1 / gamma, d1 = a / (gamma * gamma);
      fit.variance =
          std::max(0.0, (d0 * d0 * h11 - 2 * d0 * d1 * h01 + d1 * d1 * h00) / determinant);
      return fit;
    }
    double scale = 1, next = value(a + da, gamma + dgamma);
    const double least = likelihood - 1e-13 * (1 + std::abs(likelihood));  // rounding is no loss
    for (int i = 0; i < kHalvings && !(next >= least); ++i) {
      scale /= 2;
      next = value(a + scale * da, gamma + scale * dgamma);
    }
    a += scale * da;
    gamma += scale * dgamma;
    likelihood = next;
  }
  return std::nullopt;
}

double explore_probability(const ThresholdFit& fit, double similarity, double delta) {
  const double deviation = std::sqrt(fit.variance);
  double least = 1;
  for (const auto& [epsilon, quantile] : grid()) {
    const double threshold = std::clamp(fit.threshold + quantile * deviation, 0.0, 1.0);
    const double right = (1 - epsilon) * logistic(fit.slope * (similarity - threshold));
    least = std::min(least, 1 - delta / (1 - right));
  }
  return std::clamp(least, 0.0, 1.0);
}

bool same_response(std::string_view a, std::string_view b) {
  return normalised(a) == normalised(b);
}

ResponseCache::ResponseCache(std::shared_ptr<const ReusePolicy> policy, std::int64_t width,
                             std::uint64_t seed, std::int64_t next_prompt, SameResponse same)
    : policy_(std::move(policy)),
      seed_(seed),
      next_prompt_(next_prompt),
      same_(std::move(same)),
      index_(width, {.factory = "Flat"}) {}

bool ResponseCache::restore(Entry entry) {
  const bool possible =
      entry.id >= 1 && entry.id <= kMaxId && !entries_.contains(entry.id) &&
      static_cast<std::int64_t>(entry.embedding.size()) == index_.dimension() &&
      unit_length(entry.embedding) && entry.observations.size() <= kMaxObservations &&
      std::all_of(entry.observations.begin(), entry.observations.end(), [](const auto& o) {
        return o.similarity >= -1 && o.similarity <= 1;  // false for what is no number
      });
  if (!possible) return false;
  const std::int64_t ids[] = {entry.id};
  index_.add(ids, entry.embedding);
  next_id_ = std::max(next_id_, entry.id + 1);
  const auto id = entry.id;
  entries_.emplace(id, std::move(entry));
  return true;
}

std::vector<std::int64_t> ResponseCache::shrink() {
  std::vector<std::int64_t> gone;
  const auto capacity = static_cast<std::size_t>(policy_->capacity());
  while (entries_.size() > capacity) {
    const auto oldest = std::min_element(
        entries_.begin(), entries_.end(),
        [](const auto& a, const auto& b) { return a.second.last_use < b.second.last_use; });
    gone.push_back(oldest->first);
    entries_.erase(oldest);
  }
  if (!gone.empty()) index_.remove(gone);
  return gone;
}

ResponseCache::Decision ResponseCache::decide(std::span<const float> embedding) {
  Decision out;
  out.prompt = next_prompt_++;
  const auto nearest = index_.search(embedding, 1);
  if (nearest.empty()) return out;
  auto& entry = entries_.at(nearest.front().id);
  entry.last_use = out.prompt;
  out.entry = entry.id;
  out.similarity = rounded_similarity(std::clamp<double>(nearest.front().cosine, -1, 1));
  out.explore_probability = policy_->explore_probability(entry.observations, out.similarity);
  auto generator = Generator(seed_).split(static_cast<std::uint64_t>(out.prompt));
  out.hit = generator.uniform() >= out.explore_probability;
  return out;
}

ResponseCache::Learned ResponseCache::learn(const Decision& decision,
                                            std::span<const float> embedding,
                                            std::string_view fresh, bool keep) {
  Learned out;
  if (decision.entry) {
    if (const auto met = entries_.find(*decision.entry); met != entries_.end()) {
      auto& entry = met->second;
      out.right = same_(entry.response, fresh);
      if (entry.observations.size() == kMaxObservations)
        entry.observations.erase(entry.observations.begin());
      entry.observations.push_back({decision.similarity, *out.right});
    }
  }
  if (!keep || (out.right.value_or(false) && !policy_->keeps_what_was_right())) return out;
  Entry entry{
      next_id_, {embedding.begin(), embedding.end()}, std::string(fresh), {}, decision.prompt};
  if (!restore(std::move(entry))) return out;
  out.added = next_id_ - 1;
  out.evicted = shrink();
  return out;
}

std::vector<ResponseCache::Decision> ResponseCache::replay(std::span<const LoggedPrompt> log) {
  std::vector<Decision> out;
  for (const auto& logged : log) {
    const auto& decision = out.emplace_back(decide(logged.embedding));
    if (decision.hit) continue;
    if (!logged.fresh) {
      throw Error(Errc::mismatch,
                  fmt::format("prompt {} was answered from the cache when it was logged and would "
                              "be explored now: the log is of another policy, seed or start",
                              decision.prompt));
    }
    learn(decision, logged.embedding, *logged.fresh);
  }
  return out;
}

const ResponseCache::Entry* ResponseCache::find(std::int64_t id) const {
  const auto found = entries_.find(id);
  return found == entries_.end() ? nullptr : &found->second;
}

}  // namespace mneme
