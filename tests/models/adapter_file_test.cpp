#include "mneme/models/adapter_file.h"

#include "mneme/layers/lora.h"
#include "mneme/models/language_model.h"
#include "mneme/weights/safetensors.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "../folder_test.h"
#include "../tiny_models.h"
#include <filesystem>
#include <fmt/format.h>
#include <gtest/gtest.h>

namespace mneme {
namespace {

namespace fs = std::filesystem;

std::unique_ptr<LanguageModel> tiny(std::uint64_t seed = 1) {
  check::TinyModel model(check::kTinyDecoder, seed);
  auto out = std::make_unique<LanguageModel>();
  out->name = "tiny";
  out->digest = fmt::format("{:064}", seed);
  out->compute = Compute::f32;
  out->params = model.params;
  out->model = std::move(model.model);
  return out;
}

at::Tensor logits(const LanguageModel& model) {
  const c10::NoGradGuard no_gradient;
  auto state = model.model->start(1);
  return model.run({1, 5, 9, 2, 30, 7, 11, 20, 4, 3}, state, LogitsAt::all).logits;
}

class AdapterFile : public check::FolderTest {
 protected:
  void SetUp() override {
    FolderTest::SetUp();
    path_ = folder_ / "adapter.safetensors";
    trained_ = tiny();
    attach_lora(trained_->params, "layers.*.weight", adapters_, 3, 6.0);
    std::uint64_t seed = 7;
    for (const auto& name : adapters_.names()) {
      auto& tensor = adapters_.find(name)->tensor;
      tensor.copy_(0.2 * check::normal(tensor.sizes(), ++seed));
    }
    info_ = {"tiny", trained_->digest, "layers.*.weight",         3,
             6.0,    "recipe",         {{"prompt", "{\"a\": 1}"}}};
  }

  /// The file with its parts changed.
  template <class Change>
  void rewrite(Change change) const {
    std::map<std::string, std::string> metadata;
    auto tensors = read_safetensors(path_, &metadata);
    change(tensors, metadata);
    write_safetensors(path_, tensors, metadata);
  }
  void refused(Errc code, const std::string& why) const {
    auto model = tiny();
    const auto before = logits(*model);
    check::expect_error(code, why, [&] { (void)load_adapter(path_, *model); });
    EXPECT_EQ(model->digest, trained_->digest);
    EXPECT_TRUE(check::identical(logits(*model), before)) << "nothing is attached";
  }

  fs::path path_;
  std::unique_ptr<LanguageModel> trained_;
  Params adapters_;
  AdapterInfo info_;
};

TEST_F(AdapterFile, GivesBackWhatWasTrained) {
  const auto want = logits(*trained_), plain = logits(*tiny());
  EXPECT_FALSE(check::close(plain, want, 1e-2));
  std::vector<std::string> digests;
  for (const auto& [type, most] :
       std::map<std::string, double>{{"f32", 1e-6}, {"f16", 2e-3}, {"bf16", 2e-2}}) {
    save_adapter(path_, adapters_, info_, type);
    auto model = tiny();
    const auto info = load_adapter(path_, *model);
    EXPECT_TRUE(check::close(logits(*model), want, most)) << type;
    EXPECT_EQ(info.model, "tiny");
    EXPECT_EQ(info.model_digest, trained_->digest);
    EXPECT_EQ(info.parameters, "layers.*.weight");
    EXPECT_EQ(info.rank, 3);
    EXPECT_EQ(info.alpha, 6.0);
    EXPECT_EQ(info.recipe, "recipe");
    EXPECT_EQ(info.notes, info_.notes);
    EXPECT_EQ(read_adapter_info(path_).notes, info_.notes);
    EXPECT_EQ(model->digest.size(), 64u);
    EXPECT_NE(model->digest, trained_->digest);
    digests.push_back(model->digest);
    check::expect_error(Errc::mismatch, "another model",
                        [&] { (void)load_adapter(path_, *model); });
  }
  EXPECT_NE(digests[0], digests[1]) << "the adapter is part of the digest";
}

TEST_F(AdapterFile, IsRefusedByAnotherModel) {
  save_adapter(path_, adapters_, info_);
  auto other = tiny(2);
  check::expect_error(Errc::mismatch, "was made for another model: tiny",
                      [&] { (void)load_adapter(path_, *other); });
}

TEST_F(AdapterFile, IsRefusedWhereItDoesNotFit) {
  const std::string one = "layers.0.attn.q.weight.lora_a";
  const auto changed = [&](auto change) {
    save_adapter(path_, adapters_, info_);
    rewrite(change);
  };
  changed([&](auto& tensors, auto&) { tensors.erase(one); });
  refused(Errc::mismatch, "no other half");
  changed([&](auto& tensors, auto&) { tensors[one] = at::zeros({3, 31}, at::kHalf); });
  refused(Errc::mismatch, "has the sizes [3, 31], [3, 32] is wanted");
  changed(
      [&](auto& tensors, auto&) { tensors["layers.9.attn.q.weight.lora_a"] = tensors.at(one); });
  refused(Errc::mismatch, "no matrix of this model");
  changed([&](auto& tensors, auto&) { tensors["layers.0.norm1.weight.lora_a"] = tensors.at(one); });
  refused(Errc::mismatch, "no matrix of this model");
  changed([&](auto& tensors, auto&) { tensors["stowaway"] = tensors.at(one); });
  refused(Errc::mismatch, "no part of a LoRA");
  changed([&](auto& tensors, auto&) { tensors.at(one).fill_(std::nan("")); });
  refused(Errc::corrupt, "not finite");
  changed([&](auto& tensors, auto&) { tensors.at(one) = tensors.at(one).to(at::kLong); });
  refused(Errc::unsupported, "I64");
  changed([&](auto& tensors, auto&) { tensors.clear(); });
  refused(Errc::corrupt, "empty");
  changed([&](auto&, auto& metadata) { metadata["rank"] = "-3"; });
  refused(Errc::corrupt, "rank -3");
  changed([&](auto&, auto& metadata) { metadata["rank"] = "three"; });
  refused(Errc::corrupt, "'rank' of the adapter is not a number");
  changed([&](auto&, auto& metadata) { metadata["alpha"] = "nan"; });
  refused(Errc::corrupt, "alpha");
  changed([&](auto&, auto& metadata) { metadata["version"] = "2"; });
  refused(Errc::unsupported, "version");
  changed([&](auto&, auto& metadata) { metadata["format"] = "pt"; });
  refused(Errc::mismatch, "is no adapter file");
}

TEST_F(AdapterFile, RefusesToWriteWhatCannotBeRead) {
  info_.notes["rank"] = "4";
  check::expect_error(Errc::invalid, "'rank'", [&] { save_adapter(path_, adapters_, info_); });
  info_.notes.clear();
  check::expect_error(Errc::invalid, "'f64'",
                      [&] { save_adapter(path_, adapters_, info_, "f64"); });
  adapters_.find(adapters_.names().front())->tensor.fill_(1e6);
  check::expect_error(Errc::invalid, "f16 cannot keep",
                      [&] { save_adapter(path_, adapters_, info_); });
  save_adapter(path_, adapters_, info_, "bf16");
  EXPECT_TRUE(fs::exists(path_));
}

}  // namespace
}  // namespace mneme
