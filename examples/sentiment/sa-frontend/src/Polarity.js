import { createElement as h } from "react";

/** The analysis in colour: green for friendly, red for unfriendly. */
export function Polarity({ sentence, polarity }) {
  const color = polarity > 0 ? "#2e7d32" : polarity < 0 ? "#c62828" : "#616161";
  return h("p", { style: { color } }, `"${sentence}" has polarity of ${polarity}`);
}
