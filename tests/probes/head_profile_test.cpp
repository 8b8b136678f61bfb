// Head profiles: what is saved is read, anything else is refused in one line, and numbers never serve another model.
#include "mneme/kv/head_profile.h"

#include "mneme/models/language_model.h"
#include "mneme/models/profile.h"
#include "mneme/weights/safetensors.h"

#include <ATen/ATen.h>

#include "../folder_test.h"
#include "../tensor_check.h"
#include "../tiny_models.h"
#include <cstdlib>
#include <fstream>
#include <gtest/gtest.h>
#include <iterator>
#include <optional>

namespace mneme {
namespace {

const std::string kDigest(64, 'a'), kOther(64, 'b');

HeadProfile example() {
  HeadProfile out;
  out.model_digest = kDigest;
  out.numbers["qfilter"] = check::normal({2, 3, 8}, 1);
  out.numbers["key_pca.pre"] = check::normal({2, 3, 8, 8}, 2);
  out.numbers["retrieval_heads"] = check::normal({2, 9}, 3);
  out.measured["qfilter"] = "qfilter on a text: 100 queries\nand \"more\"";
  return out;
}

std::string content(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

class HeadProfileTest : public check::FolderTest {};

TEST_F(HeadProfileTest, ComesBackAsItWasSaved) {
  const auto path = folder_ / "profile.safetensors";
  auto profile = example();
  // Views with strides of their own, and other number types.
  profile.numbers["turned"] = check::normal({3, 2}, 4).t();
  profile.numbers["doubles"] = at::ones({2, 1}, at::kDouble);
  profile.save(path);
  const auto back = HeadProfile::load(path);
  EXPECT_EQ(back.model_digest, kDigest);
  EXPECT_EQ(back.measured, profile.measured);
  ASSERT_EQ(back.numbers.size(), profile.numbers.size());
  for (const auto& [name, numbers] : profile.numbers)
    EXPECT_TRUE(check::identical(back.numbers.at(name), numbers.to(at::kFloat))) << name;
  EXPECT_TRUE(check::identical(back.find("qfilter"), profile.numbers.at("qfilter")));
}

TEST_F(HeadProfileTest, NumbersThatAreNotThereAreAskedForByTheVerb) {
  const auto profile = example();
  check::expect_error(Errc::not_found, "run `mneme calibrate evaluator_heads`",
                      [&] { (void)profile.find("evaluator_heads"); });
  check::expect_error(Errc::not_found, "run `mneme calibrate key_pca`",
                      [&] { (void)profile.find("key_pca.post"); });
}

TEST_F(HeadProfileTest, ADamagedFileIsRefused) {
  const auto path = folder_ / "profile.safetensors";
  example().save(path);
  const auto whole = content(path);
  const auto refused = [&](const std::string& bytes, const std::string& what) {
    const auto damaged = write("damaged.safetensors", bytes);
    try {
      (void)HeadProfile::load(damaged);
      ADD_FAILURE() << what << " was read";
    } catch (const Error& error) {
      const std::string text = error.what();
      EXPECT_EQ(error.code(), Errc::corrupt) << what << ": " << text;
      EXPECT_EQ(text.find('\n'), text.npos) << text;
      EXPECT_NE(text.find("mneme calibrate"), text.npos) << "what to do: " << text;
    }
  };
  for (std::size_t n = 0; n < whole.size(); n += 37)
    refused(whole.substr(0, n), std::to_string(n) + " bytes");
  refused(whole + "x", "a byte more");
  // The numbers lie behind the header: one bit of them, wherever it is.
  const auto data = whole.size() - (2 * 3 * 8 + 2 * 3 * 64 + 2 * 9) * 4;
  for (std::size_t at = data; at < whole.size(); at += 53) {
    auto flipped = whole;
    flipped[at] = static_cast<char>(flipped[at] ^ 4);
    refused(flipped, "a flipped bit at " + std::to_string(at));
  }
  // In the header nothing else than an Error may come of it, and never other numbers.
  for (std::size_t at = 0; at < data; ++at) {
    auto flipped = whole;
    flipped[at] = static_cast<char>(flipped[at] ^ 1);
    try {
      const auto back = HeadProfile::load(write("damaged.safetensors", flipped));
      for (const auto& [name, numbers] : back.numbers)
        EXPECT_EQ(numbers.size(0), 2) << "byte " << at;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Errc::corrupt) << error.what();
    }
  }
  check::expect_error(Errc::not_found, "nowhere",
                      [&] { (void)HeadProfile::load(folder_ / "nowhere.safetensors"); });
}

TEST_F(HeadProfileTest, AForeignFileIsRefused) {
  const auto path = folder_ / "foreign.safetensors";
  const auto refuse = [&](const std::map<std::string, at::Tensor>& tensors,
                          const std::map<std::string, std::string>& metadata,
                          const std::string& part) {
    write_safetensors(path, tensors, metadata);
    check::expect_error(Errc::corrupt, part, [&] { (void)HeadProfile::load(path); });
  };
  const std::map<std::string, std::string> own{{"format", "mneme-head-profile"},
                                               {"version", "1"},
                                               {"model_digest", kDigest},
                                               {"crc32c", "00000000"}};
  auto newer = own, nameless = own;
  newer["version"] = "2";
  nameless["model_digest"] = "../../etc/passwd";
  refuse({{"weight", at::ones({2, 3})}}, {}, "is no head profile");
  refuse({{"weight", at::ones({2, 3})}}, {{"format", "mneme-adapter"}}, "is no head profile");
  refuse({}, newer, "another version");
  refuse({}, nameless, "of which model");
  refuse({{"qfilter", at::ones({2, 3}, at::kHalf)}}, own, "'qfilter' is not kept as F32");
  refuse({{"qfilter", at::ones({6})}}, own, "1 dimensions");
  refuse({{"qfilter", at::ones({0, 3})}}, own, "'qfilter' is empty");
  refuse({{"a", at::ones({2, 3})}, {"b", at::ones({4, 3})}}, own,
         "of 4 layers where others are of 2");
  refuse({{"../up", at::ones({2, 3})}}, own, "impossible name");
  refuse({{"qfilter", at::full({2, 3}, std::nan(""))}}, own, "not finite");
  refuse({{"qfilter", at::ones({2, 3})}}, own, "not those that were written");
  write("text.safetensors", "this is no profile at all");
  check::expect_error(Errc::corrupt, "mneme calibrate",
                      [&] { (void)HeadProfile::load(folder_ / "text.safetensors"); });
}

TEST_F(HeadProfileTest, WhatCannotBeKeptLeavesTheOldFile) {
  const auto path = folder_ / "profile.safetensors";
  example().save(path);
  const auto before = content(path);
  const auto refuse = [&](const std::string& part, auto&& spoil) {
    auto profile = example();
    spoil(profile);
    check::expect_error(Errc::invalid, part, [&] { profile.save(path); });
    EXPECT_EQ(content(path), before);
  };
  refuse("64 hex digits", [](HeadProfile& p) { p.model_digest = "abc"; });
  refuse("'Q filter'", [](HeadProfile& p) { p.numbers["Q filter"] = at::ones({2, 3}); });
  refuse("is undefined", [](HeadProfile& p) { p.numbers["a"] = at::Tensor(); });
  refuse("of 5 layers", [](HeadProfile& p) { p.numbers["z"] = at::ones({5, 3}); });
  refuse("1 dimensions", [](HeadProfile& p) { p.numbers["z"] = at::ones({2}); });
  refuse("not finite", [](HeadProfile& p) { p.numbers["z"] = at::ones({2, 3}) / 0; });
  std::filesystem::create_directory(folder_ / "in");
  example().save(folder_ / "in" / "profile.safetensors");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_ / "in"), {}), 1)
      << "nothing is left beside it";
}

/// A variable of the environment, as it was afterwards.
class Variable {
 public:
  Variable(const char* name, const std::optional<std::string>& value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old;
    set(value);
  }
  ~Variable() { set(old_); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  void set(const std::optional<std::string>& value) const {
    if (value) {
      ::setenv(name_, value->c_str(), 1);
    } else {
      ::unsetenv(name_);
    }
  }
  const char* name_;
  std::optional<std::string> old_;
};

LanguageModel tiny_model() {
  LanguageModel out;
  check::TinyModel made(check::kTinyDecoder);
  out.name = "tiny";
  out.digest = kDigest;
  out.params = std::move(made.params);
  out.model = std::move(made.model);
  return out;
}

TEST_F(HeadProfileTest, LiesWhereTheEnvironmentSays) {
  const Variable profiles("MNEME_PROFILES", std::nullopt), cache("XDG_CACHE_HOME", std::nullopt),
      home("HOME", "/somebody");
  const auto file = kDigest + ".safetensors";
  EXPECT_EQ(profile_path(kDigest), "/somebody/.cache/mneme/profiles/" + file);
  {
    const Variable set("XDG_CACHE_HOME", "/cache");
    EXPECT_EQ(profile_path(kDigest), "/cache/mneme/profiles/" + file);
    const Variable own("MNEME_PROFILES", folder_.string());
    EXPECT_EQ(profile_path(kDigest), folder_ / file);
  }
  const Variable relative("XDG_CACHE_HOME", "cache");
  EXPECT_EQ(profile_path(kDigest), "/somebody/.cache/mneme/profiles/" + file);
  check::expect_error(Errc::invalid, "is no digest", [] { (void)profile_path("../x"); });
  check::expect_error(Errc::invalid, "is no digest", [] { (void)profile_path(""); });
  const Variable homeless("HOME", std::nullopt);
  check::expect_error(Errc::not_found, "MNEME_PROFILES", [] { (void)profile_path(kDigest); });
  EXPECT_EQ(head_profile(tiny_model()), nullptr);
}

TEST_F(HeadProfileTest, ServesItsOwnModelAlone) {
  const Variable own("MNEME_PROFILES", folder_.string());
  const auto model = tiny_model();
  EXPECT_EQ(head_profile(model), nullptr) << "nothing was measured";
  example().save(profile_path(kDigest));
  const auto profile = head_profile(model);
  ASSERT_NE(profile, nullptr);
  EXPECT_TRUE(check::identical(profile->find("qfilter"), example().numbers.at("qfilter")));
  auto other = example();
  other.model_digest = kOther;
  other.save(profile_path(kDigest));
  check::expect_error(Errc::mismatch, "was measured on another model",
                      [&] { (void)head_profile(model); });
  HeadProfile deeper;
  deeper.model_digest = kDigest;
  deeper.numbers["qfilter"] = at::ones({7, 2, 8});
  deeper.save(profile_path(kDigest));
  check::expect_error(Errc::mismatch, "of 7 layers and tiny has 2",
                      [&] { (void)head_profile(model); });
  std::ofstream(profile_path(kDigest)) << "broken";
  check::expect_error(Errc::corrupt, "measure again", [&] { (void)head_profile(model); });
}

}  // namespace
}  // namespace mneme
