// What every codec of the registry must do.
#include "mneme/core/registry.h"
#include "mneme/kernels/attend.h"
#include "mneme/kv/codec.h"

#include <ATen/ATen.h>

#include "../tensor_check.h"
#include <cmath>
#include <gtest/gtest.h>
#include <numeric>

namespace mneme {
namespace {

struct Sizes {
  std::int64_t H, n, K, V;
};
constexpr Sizes kSizes[] = {{1, 1, 8, 8},     {2, 64, 64, 64}, {3, 33, 24, 40}, {2, 65, 64, 64},
                            {1, 130, 20, 36}, {1, 31, 100, 7}, {2, 1, 1, 1}};

class CodecContract : public ::testing::TestWithParam<std::string> {
 protected:
  static KvSlice numbers(const Sizes& s, std::uint64_t seed) {
    return {check::normal({s.H, s.n, s.K}, seed) * 3 + 1,
            check::normal({s.H, s.n, s.V}, seed + 1) * 0.5};
  }
  [[nodiscard]] std::string encode(const KvSlice& slice) const {
    std::string out;
    codec_->encode(slice, out);
    return out;
  }
  [[nodiscard]] KvSlice decode(std::string_view bytes, const Sizes& s) const {
    return codec_->decode(bytes, s.H, s.n, s.K, s.V);
  }
  /// Bits a number takes when there are many.
  [[nodiscard]] double bits() const {
    return 8.0 * static_cast<double>(codec_->bytes(1, 64, 64, 64)) / (2 * 64 * 64);
  }

  std::unique_ptr<Codec> codec_ = registry().make<Codec>(GetParam());
};

TEST_P(CodecContract, BytesAreExact) {
  for (const auto& s : kSizes) {
    const auto bytes = encode(numbers(s, 1));
    EXPECT_EQ(static_cast<std::int64_t>(bytes.size()), codec_->bytes(s.H, s.n, s.K, s.V));
    std::string behind = "before";
    codec_->encode(numbers(s, 1), behind);
    EXPECT_EQ(behind, "before" + bytes) << "appends";
  }
  EXPECT_EQ(codec_->bytes(2, 0, 64, 64), 0);
}

TEST_P(CodecContract, TheErrorIsBounded) {
  // With b bits a number an even step over the whole range is range / 2^b; twice that leaves room for scales. At 16 bits
  // and more the step is that of a rounded float, of which bf16 has three bits less than f16.
  const double steps = GetParam() == "bf16" ? 256 : 1024;
  for (const auto& s : kSizes) {
    const auto slice = numbers(s, 2), read = decode(encode(slice), s);
    for (const auto& [got, want] :
         {std::pair{read.keys, slice.keys}, {read.values, slice.values}}) {
      ASSERT_EQ(got.sizes(), want.sizes());
      ASSERT_EQ(got.scalar_type(), at::kFloat);
      const double range = (want.max() - want.min()).item<double>(),
                   most = want.abs().max().item<double>();
      const double bound = bits() >= 32   ? 0
                           : bits() >= 16 ? most / steps
                                          : 2 * range / std::exp2(bits()) + most / 512;
      EXPECT_LE(check::largest_difference(got, want), bound) << s.H << " " << s.n << " " << s.K;
    }
  }
}

TEST_P(CodecContract, EncodingTwiceChangesNothingMore) {
  for (const auto& s : kSizes) {
    const auto once = decode(encode(numbers(s, 3)), s), twice = decode(encode(once), s);
    EXPECT_TRUE(check::close(twice.keys, once.keys, 2e-3));
    EXPECT_TRUE(check::close(twice.values, once.values, 2e-3));
  }
}

TEST_P(CodecContract, EqualInputGivesEqualBytes) {
  const Sizes s{2, 65, 64, 64};
  EXPECT_EQ(encode(numbers(s, 4)), encode(numbers(s, 4)));
  const auto slice = numbers(s, 4);
  const KvSlice strided{slice.keys.transpose(1, 2).contiguous().transpose(1, 2),
                        slice.values.transpose(0, 1).contiguous().transpose(0, 1)};
  EXPECT_EQ(encode(strided), encode(slice)) << "whatever the strides";
}

TEST_P(CodecContract, ConstantAndHugeNumbersStayFinite) {
  const Sizes s{1, 40, 16, 16};
  const KvSlice constant{at::full({1, 40, 16}, 2.5), at::zeros({1, 40, 16})};
  const auto read = decode(encode(constant), s);
  EXPECT_LE(check::largest_difference(read.keys, constant.keys), 2e-3);
  EXPECT_LE(check::largest_difference(read.values, constant.values), 0);
  KvSlice huge = numbers(s, 5);
  huge.keys[0][3][2] = 1e7;
  huge.values[0][39][15] = -1e7;
  const auto back = decode(encode(huge), s);
  EXPECT_TRUE(at::isfinite(back.keys).all().item<bool>());
  EXPECT_TRUE(at::isfinite(back.values).all().item<bool>());
}

TEST_P(CodecContract, AWrongLengthIsRefused) {
  const Sizes s{2, 33, 16, 24};
  const auto bytes = encode(numbers(s, 6));
  for (const auto& damaged : {bytes.substr(1), bytes + "x", std::string(),
                              bytes.substr(0, bytes.size() / 2), bytes + bytes}) {
    check::expect_error(Errc::corrupt, "length", [&] { (void)decode(damaged, s); });
  }
}

TEST_P(CodecContract, AnyBytesOfTheRightLengthDecode) {
  const Sizes s{1, 33, 16, 24};
  Generator generator(9);
  for (int round = 0; round < 50; ++round) {
    std::string bytes(static_cast<std::size_t>(codec_->bytes(s.H, s.n, s.K, s.V)), '\0');
    for (auto& c : bytes) c = static_cast<char>(generator.next());
    const auto read = decode(bytes, s);
    EXPECT_EQ(read.keys.numel(), 33 * 16);
  }
}

TEST_P(CodecContract, AViewReadsWhatDecodeReads) {
  // Each query sees one entry: its output is the value, and the log of the sum of exponentials the score of the key.
  constexpr std::int32_t kN = 33, kFirst = 5, kEntries = 20, kWidth = 24;
  const Sizes s{1, kN, kWidth, kWidth};
  const auto bytes = encode(numbers(s, 7));
  const auto page = codec_->view(bytes, kN, kWidth, kWidth, kFirst, kEntries);
  if (!page) GTEST_SKIP() << "attention decodes it first";
  const auto read = decode(bytes, s);
  std::vector<std::int64_t> positions(kEntries);
  std::iota(positions.begin(), positions.end(), 0);
  auto view = *page;
  view.positions = positions.data();
  const auto q = check::normal({kEntries, kWidth}, 8);
  const auto out = at::empty({kEntries, kWidth}), lse = at::empty({kEntries});
  for (std::int64_t each = 1; each <= kEntries; each += kEntries - 1) {  // alone, and all at once
    for (std::int64_t t = 0; t < kEntries; t += each) {
      kernels::AttendTask task{};
      task.q = q.const_data_ptr<float>() + t * kWidth;
      task.heads = 1;
      task.T = each;
      task.q_time_stride = task.out_time_stride = kWidth;
      task.q_positions = positions.data() + t;
      task.pages = {&view, 1};
      task.out = out.mutable_data_ptr<float>() + t * kWidth;
      task.lse = lse.mutable_data_ptr<float>() + t;
      kernels::attend({&task, 1}, kWidth, 1.f, {true, 1});
    }
    const auto keys = read.keys[0].narrow(0, kFirst, kEntries).to(at::kDouble);
    EXPECT_TRUE(check::identical(out, read.values[0].narrow(0, kFirst, kEntries)));
    EXPECT_TRUE(check::close(lse, (q.to(at::kDouble) * keys).sum(1), 1e-5));
  }
  check::expect_error(Errc::corrupt, "length", [&] {
    (void)codec_->view(bytes.substr(4), kN, kWidth, kWidth, kFirst, kEntries);
  });
}

INSTANTIATE_TEST_SUITE_P(EveryCodec, CodecContract,
                         ::testing::ValuesIn(registry().names(Codec::kKind)),
                         [](const auto& info) { return check::test_name(info.param); });

}  // namespace
}  // namespace mneme
