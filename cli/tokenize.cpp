// mneme tokenize: the token ids of a text.
#include "mneme/models/locate.h"
#include "mneme/text/tokenizer.h"
#include "mneme/weights/checkpoint.h"

#include "cli/program/input.h"
#include "cli/program/output.h"
#include "cli/program/verb.h"
#include <fmt/format.h>

namespace mneme::cli {
namespace {

class Tokenize final : public Verb {
 public:
  [[nodiscard]] About about() const override {
    return {Group::model,
            "tokenize",
            "print the token ids of a text",
            {{"TEXT", "the text; `-` takes it from standard input, byte for byte"}},
            {"mneme tokenize \"To be, or not to be\"",
             "mneme tokenize --model minilm --special - < note.txt"}};
  }

  void declare(Flags& flags) override {
    flags("--model", model_, "NAME",
          "whose tokenizer: a known name, a GGUF file or a model folder");
    flags("--special", special_,
          "add what the model's tokenizer puts around a text, and read the names of special tokens "
          "in it");
    flags("--json", json_, "print one JSON object");
  }

  void run(const Invocation& call) override {
    const auto text = call.arguments[0] == "-" ? read_input() : call.arguments[0];
    const auto located = locate_model(model_);
    const auto checkpoint = open_checkpoint(located.path);
    const auto tokenizer = checkpoint->format() == "gguf"
                               ? tokenizer_from_gguf(checkpoint->metadata())
                               : tokenizer_from_directory(located.path);
    const auto ids = tokenizer->encode(text, {special_, special_});
    const auto lost = tokenizer->lost_bytes(text);
    if (json_) {
      print_json(
          {{"ids", ids}, {"tokens", ids.size()}, {"lost_bytes", lost}, {"model", located.name}});
    } else {
      say("{}\n", fmt::join(ids, " "));
    }
    warn_of_lost_bytes(lost, "text");
  }

 private:
  std::string model_ = "smollm2";
  bool special_ = false, json_ = false;
};

}  // namespace

std::unique_ptr<Verb> tokenize_verb() { return std::make_unique<Tokenize>(); }

}  // namespace mneme::cli
