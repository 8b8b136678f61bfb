// Plots: curves over one common axis, as an SVG file.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mneme {

/// A line through points (x, y), x ascending.
struct Curve {
  std::string name;  ///< for the legend
  std::vector<std::pair<double, double>> points;
};

/// One pair of axes.
struct Panel {
  std::string label;  ///< of the vertical axis
  std::vector<Curve> curves;
  bool dots = false;  ///< mark the points, where they are few
};

/// The panels one below another over a common horizontal axis, as SVG. Points that are not finite are
/// left out.
std::string plot_svg(std::string_view title, std::string_view x_label,
                     const std::vector<Panel>& panels);

/// A text as SVG takes it between tags and in attributes; control characters become spaces.
std::string svg_escaped(std::string_view text);

/// The curve's moving average: each point is `keep` times the one before and the rest its own value.
Curve smoothed(const Curve& curve, double keep, std::string name);

}  // namespace mneme
