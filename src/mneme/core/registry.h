// The registry: every component by kind and name. It knows no kinds: an interface declares its own by
//   static constexpr std::string_view kKind = "mixer", kKindHelp = "one line";
//   using Make = std::unique_ptr<Mixer>(const Shape&, Params&);   // what a factory takes beside the options
// and a mechanism enrols with r.add<Mixer, ScalarGla>("scalar_gla", help, card).
#pragma once

#include "mneme/core/describe.h"
#include "mneme/core/error.h"
#include "mneme/core/spec.h"

#include <any>
#include <concepts>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace mneme {

/// One enrolled component.
struct Component {
  std::string kind, name, help, card;
  std::vector<OptionDoc> options;
  std::function<Stage(const Stage&)>
      canonicalize;  ///< binds, checks and prints back canonically; throws Error(usage)
  std::any make;     ///< std::function of the kind's factory signature
};

class Registry {
 public:
  /// Enrols T as a component of kind K. T takes (Options, arguments of K::Make) or, without options, the arguments alone.
  template <class K, class T>
  void add(std::string_view name, std::string_view help, std::string_view card = "") {
    add_component(K::kKindHelp,
                  maker<K, T>(static_cast<typename K::Make*>(nullptr), name, help, card));
  }

  /// Builds the component that a stage names; throws Error(usage) with the nearest known name.
  template <class K, class... A>
  [[nodiscard]] std::unique_ptr<K> make(const Stage& stage, A&&... arguments) const {
    using Function = std::function<Made<K, typename K::Make>>;
    return std::any_cast<const Function&>(find(K::kKind, stage.name).make)(
        stage, std::forward<A>(arguments)...);
  }
  template <class K, class... A>
  [[nodiscard]] std::unique_ptr<K> make(std::string_view spec, A&&... arguments) const {
    return make<K>(parse_stage(spec), std::forward<A>(arguments)...);
  }

  /// The component; throws Error(usage) with the nearest known name of that kind.
  [[nodiscard]] const Component& find(std::string_view kind, std::string_view name) const;
  [[nodiscard]] bool has(std::string_view kind, std::string_view name) const;
  [[nodiscard]] std::vector<std::string> kinds() const;
  [[nodiscard]] std::string_view kind_help(std::string_view kind) const;
  [[nodiscard]] std::vector<const Component*> components(std::string_view kind = "") const;
  [[nodiscard]] std::vector<std::string> names(std::string_view kind) const;

 private:
  template <class K, class F>
  struct WithStage;
  template <class K, class R, class... A>
  struct WithStage<K, R(A...)> {
    using type = std::unique_ptr<K>(const Stage&, A...);
  };
  template <class K, class F>
  using Made = typename WithStage<K, F>::type;

  template <class K, class T, class R, class... A>
  static Component maker(R (*)(A...), std::string_view name, std::string_view help,
                         std::string_view card) {
    Component c{
        std::string(K::kKind), std::string(name), std::string(help), std::string(card), {}, {}, {}};
    if constexpr (Described<T>) {
      typename T::Options defaults;
      Describe d;
      T::describe(d, defaults);
      c.options = d.document();
      c.canonicalize = [n = c.name](const Stage& stage) {
        return canonical<T>(n, options_from<T>(stage));
      };
      c.make = std::function<std::unique_ptr<K>(const Stage&, A...)>(
          [](const Stage& stage, A... arguments) -> std::unique_ptr<K> {
            return std::make_unique<T>(options_from<T>(stage), static_cast<A>(arguments)...);
          });
    } else {
      c.canonicalize = [](const Stage& stage) {
        Describe().bind(stage);
        return Stage{stage.name, {}};
      };
      c.make = std::function<std::unique_ptr<K>(const Stage&, A...)>(
          [](const Stage& stage, A... arguments) -> std::unique_ptr<K> {
            Describe().bind(stage);
            return std::make_unique<T>(static_cast<A>(arguments)...);
          });
    }
    return c;
  }

  void add_component(std::string_view kind_help, Component component);
  std::map<std::string, std::map<std::string, Component, std::less<>>, std::less<>> by_kind_;
  std::map<std::string, std::string, std::less<>> kind_help_;
};

/// Calls every mechanism's enrol; generated from the folders (cmake/Registry.cmake).
void enrol_all(Registry&);

/// The registry with everything enrolled, built on first use.
const Registry& registry();

}  // namespace mneme
