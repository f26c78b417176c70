"use strict";
// Draws every figure, in the colours of the page: a figure names its colours as var(--role), plotly wants them resolved.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const config = {
    responsive: true,
    displaylogo: false,
    showSendToCloud: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };
  const painted = (value, style) => {
    if (typeof value === "string") {
      return value.replace(/var\((--[a-z0-9-]+)\)/g, (_, role) => style.getPropertyValue(role).trim());
    }
    if (Array.isArray(value)) {
      return value.map((one) => painted(one, style));
    }
    if (value !== null && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, painted(one, style)]));
    }
    return value;
  };
  const draw = () => {
    const style = getComputedStyle(document.documentElement);
    for (const { id, figure } of figures) {
      const { data, layout } = painted(figure, style);
      if (matchMedia("(pointer: coarse)").matches) {
        layout.dragmode = false; // a finger that moves scrolls
      }
      Plotly.react(id, data, layout, config);
    }
  };
  for (const query of ["(prefers-color-scheme: dark)", "print"]) {
    matchMedia(query).addEventListener("change", draw);
  }
  draw();
})();
