// Figures: scatter plots and heat maps of pipelines, as SVG.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace mneme::bench {

/// A measurement with its interval.
struct ScatterPoint {
  std::string series;  ///< points of one series have one colour and a line through them
  double x = 0, y = 0, low = 0, high = 0;
};

/// One pair of axes.
struct ScatterPanel {
  std::string label;  ///< of the vertical axis
  std::vector<ScatterPoint> points;
};

/// The panels one below another over a common horizontal axis, which is logarithmic and shows bytes. Points whose
/// coordinates are not finite, or whose x is not above 0, are left out.
std::string scatter_svg(std::string_view title, std::string_view x_label,
                        const std::vector<ScatterPanel>& panels);

/// A grid of values in [0, 1]: rows and columns as they are labelled, the first row on top.
struct HeatMap {
  std::string title;
  std::vector<std::vector<double>> values;  ///< [rows][columns]; NaN: not measured
};

/// The maps side by side, `across` in a line, with the same axes.
std::string heat_maps_svg(std::string_view title, std::string_view x_label,
                          const std::vector<std::string>& columns, std::string_view y_label,
                          const std::vector<std::string>& rows, const std::vector<HeatMap>& maps,
                          std::size_t across);

}  // namespace mneme::bench
