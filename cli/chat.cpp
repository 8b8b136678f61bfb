// mneme chat: a conversation, with a memory file that answers and keeps it, or with the model alone.
#include "mneme/core/error.h"
#include "mneme/core/log.h"
#include "mneme/core/nearest.h"
#include "mneme/decode/generate.h"
#include "mneme/kv/plan.h"
#include "mneme/memory/memory.h"
#include "mneme/models/kv_plan.h"
#include "mneme/models/language_model.h"
#include "mneme/models/prepare.h"
#include "mneme/text/white_space.h"

#include "cli/program/citations.h"
#include "cli/program/forgotten.h"
#include "cli/program/input.h"
#include "cli/program/interrupt.h"
#include "cli/program/output.h"
#include "cli/program/sampling.h"
#include "cli/program/verb.h"
#include <algorithm>
#include <fmt/format.h>
#include <memory>
#include <optional>

namespace mneme::cli {
namespace {

constexpr const char* kCommands =
    "  /sources        what the memory holds\n"
    "  /forget LABEL   take a source out of the memory for good\n"
    "  /clear          forget this conversation\n"
    "  /help           this list\n"
    "  //TEXT          say what begins with a slash\n"
    "  /quit           leave (so does Ctrl-D)\n";

/// How replies are made.
struct Wishes {
  std::int64_t max_tokens = 256;
  Chain sampler;
  std::uint64_t seed = 0;
  std::string kv;  ///< what the model alone keeps of the conversation
};

/// Somebody to talk with.
class Partner {
 public:
  virtual ~Partner() = default;
  [[nodiscard]] virtual std::string greeting() = 0;
  /// Prints the reply as it comes, and what belongs to it.
  virtual void reply(const std::string& message) = 0;
  virtual void sources() = 0;
  virtual void forget(const std::string& label) = 0;
  virtual void clear() = 0;
};

class FromMemory final : public Partner {
 public:
  FromMemory(std::unique_ptr<Memory> memory, std::string session, Wishes wishes)
      : memory_(std::move(memory)), session_(std::move(session)), wishes_(std::move(wishes)) {
    if (!memory_->file().writable())
      log::warn("{} cannot be written: this conversation will not be kept",
                memory_->file().path().string());
  }

  std::string greeting() override {
    const auto turns = memory_->file().turns(session_).size();
    return fmt::format("Talking from {}, session '{}'{}.",
                       one_line(memory_->file().path().string()), one_line(session_),
                       turns == 0 ? ""
                                  : fmt::format(" with {} so far",
                                                counted(static_cast<std::int64_t>(turns), "turn")));
  }

  void reply(const std::string& message) override {
    ChatOptions options;
    options.max_tokens = wishes_.max_tokens;
    options.sampler = wishes_.sampler;
    options.seed = wishes_.seed;
    options.on_text = stream_to_output();
    // Told first: who reads a reply that no source stands behind must know it from the first word on.
    options.on_note = [](std::string_view note) { say("{}\n", faint(fmt::format("({})", note))); };
    const auto reply = memory_->chat(session_, message, options);
    say("\n");
    const bool quotation =
        std::any_of(reply.citations.begin(), reply.citations.end(),
                    [](const Citation& citation) { return citation.holds_answer; });
    // One without citations and with a note is "not found".
    if (reply.from_memory && !reply.text.empty() && !quotation &&
        (!reply.citations.empty() || reply.note.empty()))
      say("{}\n", not_a_quotation());
    write(faint(describe_citations(reply.citations, false)));
    if (reply.cut) say("{}\n", faint("(" + cut_at(wishes_.max_tokens) + ")"));
    if (!reply.note.empty()) say("{}\n", faint("(" + reply.note + ")"));
    if (reply.moved_to_memory > 0)
      log::info("{} left the context and can be found as part of the session's memory",
                counted(reply.moved_to_memory, "turn"));
    if (!reply.turns_obstacle.empty()) throw Error(Errc::io, reply.turns_obstacle);
  }

  void sources() override {
    std::int64_t n = 0;
    for (const auto& info : memory_->file().documents()) {
      if (!info.session.empty()) continue;
      say("  {}: {} in {}\n", one_line(info.document.label), counted(info.tokens, "token"),
          counted(info.spans, "span"));
      ++n;
    }
    if (n == 0) say("  none\n");
  }

  void forget(const std::string& label) override {
    const auto report = memory_->file().forget(label);
    say("  {}: {}; {}, {}\n", report.cleaned ? "forgotten" : "deleted", one_line(label),
        counted(report.spans, "span"), counted(report.turns, "turn"));
    require_cleaned(report);
  }

  void clear() override {
    const auto sessions = memory_->file().sessions();
    if (std::any_of(sessions.begin(), sessions.end(),
                    [&](const SessionInfo& s) { return s.name == session_; }))
      require_cleaned(memory_->file().clear_session(session_));
    say("  cleared\n");
  }

 private:
  std::unique_ptr<Memory> memory_;
  std::string session_;
  Wishes wishes_;
};

/// The model alone. Its State holds the conversation, so that each message is read once.
class FromModel final : public Partner {
 public:
  FromModel(std::unique_ptr<LanguageModel> model, Wishes wishes)
      : model_(std::move(model)), wishes_(std::move(wishes)) {
    if (!model_->chat)
      throw Error(Errc::unsupported,
                  fmt::format("{} has no chat template that mneme knows", model_->name));
    if (!wishes_.kv.empty()) {
      plan_ = kv_plan(wishes_.kv, *model_);
      begin();
      any_length_ = any_length(state_, model_->model->shape().context);
    }
    log::warn("nothing of this conversation is kept: `mneme chat FILE` keeps it in a memory file");
  }

  std::string greeting() override {
    return fmt::format("Talking with {}.", one_line(model_->name));
  }

  void reply(const std::string& message) override {
    messages_.push_back({"user", message});
    auto ids = encode();
    const auto context = model_->model->shape().context;
    std::int64_t left_out = 0;
    // The oldest question goes with its answer; the model's own opening stays.
    while (context > 0 && !any_length_ &&
           static_cast<std::int64_t>(ids.size()) + wishes_.max_tokens > context &&
           messages_.size() > 2) {
      messages_.erase(messages_.begin(), messages_.begin() + 2);
      left_out += 2;
      ids = encode();
    }
    GenerateOptions options;
    options.max_tokens = wishes_.max_tokens;
    options.sampler = wishes_.sampler;
    options.seed = wishes_.seed;
    options.on_text = stream_to_output();
    Generation said;
    try {
      const auto fresh = feed(ids);
      said = decode::generate(*model_, fresh, state_, options);
    } catch (...) {
      messages_.pop_back();
      held_.clear();
      state_ = {};
      throw;
    }
    held_ = std::move(ids);
    held_.insert(held_.end(), said.ids.begin(), said.ids.end());
    messages_.push_back({"assistant", said.text});
    say("\n");
    if (left_out > 0)
      say("{}\n", faint(fmt::format("({} no longer in the model's context)",
                                    counted(left_out, "older turn is", "older turns are"))));
    if (said.stop_reason == "length") say("{}\n", faint("(" + cut_at(wishes_.max_tokens) + ")"));
    if (said.stop_reason == "context")
      say("{}\n", faint("(the reply ends early: the model's context is full)"));
  }

  void sources() override { say("  none: this is the model alone\n"); }
  void forget(const std::string&) override {
    throw Error(Errc::not_found, "the model alone holds no sources");
  }
  void clear() override {
    messages_.clear();
    say("  cleared\n");
  }

 private:
  void begin() {
    state_ = model_->model->start(1);
    use_plan(state_, plan_);
  }

  std::vector<std::int32_t> encode() const {
    return model_->chat->encode_chat(*model_->tokenizer, messages_, true);
  }

  /// The part of `ids` that the State does not hold; what it holds beyond the common part is taken back.
  std::vector<std::int32_t> feed(const std::vector<std::int32_t>& ids) {
    const auto in_state = state_.positions.empty() ? 0 : state_.positions.front();
    std::int64_t common = 0;
    const auto most = std::min({in_state, static_cast<std::int64_t>(held_.size()),
                                static_cast<std::int64_t>(ids.size()) - 1});
    while (common < most &&
           held_[static_cast<std::size_t>(common)] == ids[static_cast<std::size_t>(common)])
      ++common;
    if (in_state > common) {
      try {
        state_.rewind(in_state - common);
      } catch (const Error& error) {
        if (error.code() != Errc::unsupported) throw;
        state_ = {};
        common = 0;
      }
    }
    if (plan_ && state_.positions.empty()) begin();
    return {ids.begin() + common, ids.end()};
  }

  std::unique_ptr<LanguageModel> model_;
  Wishes wishes_;
  std::shared_ptr<const KvPlan> plan_;
  bool any_length_ = false;  // older turns need not go
  std::vector<ChatMessage> messages_;
  std::vector<std::int32_t> held_;  // ids that the State was fed; it may lack the last of them
  State state_;
};

class Chat final : public Verb {
 public:
  [[nodiscard]] About about() const override {
    return {
        Group::main_job,
        "chat",
        "talk with a memory file, or with the model alone",
        {{"FILE", "a memory file; without one nothing is kept", false}},
        {"mneme chat handbook.mneme --session monday",
         "printf 'What is covered?\\nSince when?\\n' | mneme chat handbook.mneme"},
        "The conversation is kept in the file, under the session's name; what no longer fits "
        "the model's context can still be found. Where "
        "standard input is no terminal, every line is a message. With an adapter that learned to "
        "answer, what is in the memory is told in its likeliest words; --temp and its like "
        "act on other replies. Commands: /sources, /forget "
        "LABEL, /clear, /help, /quit."};
  }

  void declare(Flags& flags) override {
    flags("--session", session_, "NAME", "the conversation to go on with; unset: \"default\"");
    flags("--max-tokens", wishes_.max_tokens, "N", at_least(1), "tokens of a reply at most");
    flags("--model", model_, "NAME", "language model; unset: the memory's, or smollm2");
    flags("--embedder", embedder_, "NAME", "embedder; unset: the memory's");
    flags("--adapter", adapter_, "NAME",
          "adapter that answers from memory: a known name, a file, none; unset: the memory's");
    flags("--memory,--kv", wishes_.kv, "SPEC",
          "what the model alone keeps of the conversation, as \"window(sinks=4, size=2048)\"; a "
          "memory file says so itself");
    sampling_.declare(flags);
  }

  void run(const Invocation& call) override {
    if (!wishes_.kv.empty()) {
      KvPlan(parse_chain(wishes_.kv));  // before a model is loaded in vain
      if (!call.arguments.empty())
        throw Error(
            Errc::usage,
            "--kv is for the model alone: what a memory keeps of its spans was said when it "
            "was read (`mneme read --kv`)");
    }
    wishes_.sampler = sampling_.chain(call.origins);
    wishes_.seed = call.everywhere.seed;
    std::unique_ptr<Partner> partner;
    if (call.arguments.empty()) {
      if (!session_.empty())
        throw Error(Errc::usage,
                    "--session names a conversation in a memory file: give the file too");
      partner = std::make_unique<FromModel>(
          load_language_model(model_.empty() ? "smollm2" : model_), wishes_);
    } else {
      if (session_.empty()) session_ = "default";
      check_session(session_);
      auto memory = Memory::open(call.arguments[0],
                                 std::make_shared<MemoryModels>(model_, embedder_, adapter_), {});
      memory->reader();  // so that the first reply does not wait for it
      partner = std::make_unique<FromMemory>(std::move(memory), session_, wishes_);
    }
    const bool terminal = input_is_terminal();
    if (terminal && !call.everywhere.quiet)
      say("{}\n", faint(partner->greeting() + " /help lists commands."));
    LineReader lines;
    // What a message is refused for is told when the next one comes, or by the exit status.
    std::optional<Error> refusal;
    std::int64_t messages = 0, refused = 0;
    while (const auto line = lines.next("> ")) {
      std::string message(text::trimmed(*line));
      if (message.empty()) continue;
      if (message == "/quit" || message == "/exit") break;
      if (refusal) {
        log::error("{}", refusal->what());
        refusal.reset();
      }
      ++messages;
      try {
        if (message.starts_with('/') && !message.starts_with("//")) {
          obey(*partner, message);
        } else {
          if (message.starts_with('/')) message.erase(0, 1);
          check_utf8(message, "message");
          partner->reply(message);
        }
      } catch (const Error& error) {
        if (terminal) {
          say("{}\n", one_line(error.what()));
        } else if (is_of_the_message(error.code())) {
          refusal = error;
          ++refused;
        } else {
          throw;
        }
      }
      flush();
      if (interrupted()) {
        if (!terminal) break;
        resume_after_interrupt();  // Ctrl-C ended the reply, not the conversation
      }
    }
    if (refusal && messages > 1) log::error("{}", refusal->what());
    if (refused > 0 && messages == 1) throw Error(*refusal);
    if (refused > 0)
      throw Error(Errc::invalid,
                  fmt::format("{} of {} had no reply", refused, counted(messages, "message")));
    if (!terminal) stop_if_interrupted();
  }

 private:
  /// Asked before a model is loaded: a memory file would refuse the name only when the first reply is to be kept.
  static void check_session(const std::string& name) {
    try {
      MemoryFile::check_session_name(name);
    } catch (const Error& error) {
      throw Error(Errc::usage, fmt::format("--session: {}", error.what()));
    }
  }

  /// Whether only this message is at fault: those after it may be answered.
  static bool is_of_the_message(Errc code) {
    return code == Errc::usage || code == Errc::invalid || code == Errc::full ||
           code == Errc::not_found;
  }

  static void obey(Partner& partner, const std::string& message) {
    const auto space = std::min(message.find(' '), message.size());
    const auto command = message.substr(0, space);
    const std::string rest(text::trimmed(std::string_view(message).substr(space)));
    if (command == "/sources") {
      partner.sources();
    } else if (command == "/forget") {
      if (rest.empty())
        throw Error(Errc::usage, "/forget LABEL: which source? /sources lists them");
      partner.forget(rest);
    } else if (command == "/clear") {
      partner.clear();
    } else if (command == "/help") {
      write(kCommands);
    } else {
      throw Error(
          Errc::usage,
          fmt::format("no command {}{}; /help lists them, and //{} says it", command,
                      did_you_mean(command, {"/sources", "/forget", "/clear", "/help", "/quit"}),
                      command.substr(1)));
    }
  }

  std::string session_, model_, embedder_, adapter_;
  Wishes wishes_;
  Sampling sampling_;
};

}  // namespace

std::unique_ptr<Verb> chat_verb() { return std::make_unique<Chat>(); }

}  // namespace mneme::cli
