#include "mneme/core/registry.h"

#include "mneme/core/nearest.h"

#include <fmt/format.h>

namespace mneme {

void Registry::add_component(std::string_view kind_help, Component component) {
  kind_help_[component.kind] = kind_help;
  auto& names = by_kind_[component.kind];
  MNEME_ASSERT(!names.contains(component.name));  // two mechanisms of one kind under one name
  auto name = component.name;
  names.emplace(std::move(name), std::move(component));
}

const Component& Registry::find(std::string_view kind, std::string_view name) const {
  const auto of_kind = by_kind_.find(kind);
  if (of_kind == by_kind_.end()) {
    throw Error(Errc::usage,
                fmt::format("no components of kind '{}'{}", kind, did_you_mean(kind, kinds())));
  }
  const auto found = of_kind->second.find(name);
  if (found == of_kind->second.end()) {
    throw Error(Errc::usage, fmt::format("no {} is called '{}'{} (see `mneme components {}`)", kind,
                                         name, did_you_mean(name, names(kind)), kind));
  }
  return found->second;
}

bool Registry::has(std::string_view kind, std::string_view name) const {
  const auto of_kind = by_kind_.find(kind);
  return of_kind != by_kind_.end() && of_kind->second.contains(name);
}

std::vector<std::string> Registry::kinds() const {
  std::vector<std::string> out;
  for (const auto& [kind, components] : by_kind_) out.push_back(kind);
  return out;
}

std::string_view Registry::kind_help(std::string_view kind) const {
  const auto found = kind_help_.find(kind);
  return found == kind_help_.end() ? std::string_view{} : found->second;
}

std::vector<const Component*> Registry::components(std::string_view kind) const {
  std::vector<const Component*> out;
  for (const auto& [name, of_kind] : by_kind_) {
    if (!kind.empty() && kind != name) continue;
    for (const auto& [component_name, component] : of_kind) out.push_back(&component);
  }
  return out;
}

std::vector<std::string> Registry::names(std::string_view kind) const {
  std::vector<std::string> out;
  for (const auto* component : components(kind)) out.push_back(component->name);
  return out;
}

const Registry& registry() {
  static const Registry instance = [] {
    Registry r;
    enrol_all(r);
    return r;
  }();
  return instance;
}

}  // namespace mneme
