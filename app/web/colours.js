// A number and a colour for each category, by its name: the same in every photo, every run and every exported file.

const NUMBERS = "exemplar-category-numbers";
const TONES = [[0.85, 0.95], [0.5, 1], [0.9, 0.65]]; // saturation, value: hue alone has too few distinct colours
const GOLDEN = (Math.sqrt(5) - 1) / 2; // steps of the golden ratio stay far from every earlier hue

// Names are compared as the service does. They are numbered in the order in which this browser sees them, which keeps
// the colours of few categories far apart; a hash would not.
export function numberOf(name) {
  const key = name.normalize("NFC").toLowerCase();
  if (!numbers().has(key)) localStorage.setItem(NUMBERS, JSON.stringify([...numbers().keys(), key]));
  return numbers().get(key);
}

let stored; // as it was last read
let read = new Map();

// By key. Read anew only when it has changed, here or in another tab: a thousand names are looked up at every repaint.
function numbers() {
  const now = localStorage.getItem(NUMBERS) ?? "[]";
  if (now !== stored) read = new Map(JSON.parse(now).map((key, index) => [key, index + 1]));
  stored = now;
  return read;
}

// Red, green, blue: of the service's own palette.
export function colourOf(name) {
  const index = numberOf(name) - 1;
  const [saturation, value] = TONES[index % TONES.length];
  const hue = (index * GOLDEN) % 1;
  const level = (n) => {
    const k = (n + 6 * hue) % 6;
    return Math.round(255 * (value - value * saturation * Math.max(0, Math.min(k, 4 - k, 1))));
  };
  return [level(5), level(3), level(1)];
}

export const css = (name) => `rgb(${colourOf(name).join(" ")})`;
