// mneme embed: texts to unit vectors.
#include "mneme/core/log.h"
#include "mneme/embed/sentence_encoder.h"

#include "cli/program/input.h"
#include "cli/program/interrupt.h"
#include "cli/program/output.h"
#include "cli/program/verb.h"
#include <fmt/format.h>
#include <string>
#include <string_view>
#include <vector>

namespace mneme::cli {
namespace {

// Lines of standard input that run together: enough for the products to pay.
constexpr std::size_t kBatch = 64;

class Embed final : public Verb {
 public:
  [[nodiscard]] About about() const override {
    return {Group::model,
            "embed",
            "print unit vectors of texts",
            {{"TEXT", "a text; `-` takes one from every line of standard input", true, true}},
            {"mneme embed \"a red car\" \"an automobile\"",
             "mneme embed --json - < sentences.txt > vectors.jsonl"},
            "Prints one line a text: its numbers, or with --json an object."};
  }

  void declare(Flags& flags) override {
    flags("--embedder", embedder_, "NAME", "a known name or a model folder");
    flags("--json", json_, "print one JSON object a line: text, embedding, tokens, truncated");
  }

  void run(const Invocation& call) override {
    const auto encoder = SentenceEncoder::load(embedder_);
    for (const auto& argument : call.arguments) {
      if (argument != "-") {
        add(*encoder, argument);
        continue;
      }
      LineReader lines;
      while (auto line = lines.next("")) add(*encoder, std::move(*line));
      stop_if_interrupted();
    }
    finish(*encoder);
    if (truncated_ > 0) {
      log::warn("{} longer than the {} tokens that {} reads: only their beginning is in the vector",
                counted(truncated_, "text was", "texts were"), encoder->max_tokens(),
                encoder->name());
    }
  }

 private:
  void add(const SentenceEncoder& encoder, std::string text) {
    check_utf8(text, fmt::format("text in place {}", done_ + waiting_.size() + 1));
    waiting_.push_back(std::move(text));
    if (waiting_.size() == kBatch) finish(encoder);
  }

  void finish(const SentenceEncoder& encoder) {
    stop_if_interrupted();
    const std::vector<std::string_view> texts(waiting_.begin(), waiting_.end());
    const auto embeddings = encoder.embed(texts);
    for (std::size_t i = 0; i < texts.size(); ++i) {
      truncated_ += embeddings[i].truncated;
      if (json_) {
        print_json({{"text", texts[i]},
                    {"embedding", embeddings[i].vector},
                    {"tokens", embeddings[i].tokens},
                    {"truncated", embeddings[i].truncated}});
      } else {
        say("{}\n", fmt::join(embeddings[i].vector, " "));
      }
    }
    flush();
    done_ += waiting_.size();
    waiting_.clear();
  }

  std::string embedder_ = "minilm";
  bool json_ = false;
  std::vector<std::string> waiting_;
  std::size_t done_ = 0;
  std::int64_t truncated_ = 0;
};

}  // namespace

std::unique_ptr<Verb> embed_verb() { return std::make_unique<Embed>(); }

}  // namespace mneme::cli
