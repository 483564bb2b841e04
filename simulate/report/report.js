"use strict";
// Numbers of glucose carry mg/dL in data-mg; the button rewrites them and their units.
const perMmol = 18.016;
const root = document.documentElement;
const button = document.getElementById("unit-button");
function show(unit) {
  root.dataset.unit = unit;
  for (const node of document.querySelectorAll("[data-mg]")) {
    const value = Number(node.dataset.mg), digits = node.dataset.digits.split(" ").map(Number);
    const text = unit === "mmol/L"
      ? (value / perMmol).toFixed(digits[1]) : value.toFixed(digits[0]);
    node.textContent = text.replace("-", "−");
  }
  for (const node of document.querySelectorAll(".unit")) node.textContent = unit;
  button.textContent = unit === "mmol/L" ? "Show mg/dL" : "Show mmol/L";
}
if (button) {
  button.hidden = false;
  button.addEventListener("click", () => show(root.dataset.unit === "mmol/L" ? "mg/dL" : "mmol/L"));
}
// What is folded away on a screen is printed.
addEventListener("beforeprint", () => {
  for (const node of document.querySelectorAll("details")) node.open = true;
});
