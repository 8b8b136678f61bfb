#include "mneme/core/generator.h"

#include <array>
#include <cmath>
#include <numbers>

namespace mneme {
namespace {

std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> c,
                                    std::array<std::uint32_t, 2> k) noexcept {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53} * c[0], b = std::uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<std::uint32_t>(b >> 32) ^ c[1] ^ k[0], static_cast<std::uint32_t>(b),
         static_cast<std::uint32_t>(a >> 32) ^ c[3] ^ k[1], static_cast<std::uint32_t>(a)};
    k[0] += 0x9E3779B9;
    k[1] += 0xBB67AE85;
  }
  return c;
}

}  // namespace

std::uint32_t Generator::next() noexcept {
  const std::uint64_t block = counter_ / 4;
  const auto word = philox(
      {static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32), 0, 0},
      {static_cast<std::uint32_t>(seed_), static_cast<std::uint32_t>(seed_ >> 32)})[counter_ % 4];
  ++counter_;
  return word;
}

double Generator::uniform() noexcept {
  const std::uint64_t high = next(), low = next();
  return static_cast<double>(((high << 32) | low) >> 11) * 0x1p-53;
}

double Generator::normal() noexcept {
  const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
  return radius * std::cos(2.0 * std::numbers::pi * uniform());
}

Generator Generator::split(std::uint64_t purpose) const noexcept {
  const auto words =
      philox({static_cast<std::uint32_t>(purpose), static_cast<std::uint32_t>(purpose >> 32), 1, 0},
             {static_cast<std::uint32_t>(seed_), static_cast<std::uint32_t>(seed_ >> 32)});
  return Generator((std::uint64_t{words[0]} << 32) | words[1]);
}

}  // namespace mneme
