// What the service knows in numbers and codes, in words for a person who labels photos.

// Below this the example is marked so loosely, or seen so badly, that another try is worth it.
const GOOD_OVERLAP = 0.6;

const DOUBTS = {
  "mask-looks-inverted": "You seem to have marked everything except the object. Mark the object itself.",
  "mask-very-small": "Very little is marked. Is that the whole object?",
  "mask-covers-most": "Almost the whole photo is marked. Mark the object alone.",
  "duplicate-example": "It knows this example already. Show it another photo.",
  "contradicts-example": "Another example says the opposite of this photo. Delete the one that is wrong.",
  "example-not-learned":
    "It finds this object badly in its own photo. Mark it more exactly, or choose a photo where it is larger.",
};

// An answer's warnings, each as a sentence. A code that the page does not know comes with the service's own.
export const doubts = (warnings) => warnings.map(({ code, detail }) => DOUBTS[code] ?? detail);

export const percent = (share) => `${Math.round(100 * share)} %`;

const overlap = ({ example_iou: learnt, zero_shot_example_iou: byName }) => Math.max(learnt, byName);

// What became of the example where the masks go by the name.
const KEPT = {
  words: "The name alone does better than what it learnt, so it goes by the name.",
  presence: "The name alone marks it well. What it learnt helps to tell whether a photo shows it.",
};

export const SEEN = "Mark more exactly: the orange line shows what it sees as the object.";

export const isMarkedLoosely = (adapter) => overlap(adapter) < GOOD_OVERLAP;

export const rightShare = (adapter) => percent(overlap(adapter));

// How much of the examples comes out as it was marked.
export function howWell(adapter, examples) {
  const those = examples === 1 ? "your example" : "your examples";
  return `It marks ${rightShare(adapter)} of ${those} right.`;
}

// What came of teaching.
export function outcome(name, { adapter, examples }) {
  const said = [`“${name}” is taught.`, howWell(adapter, examples)];
  if (adapter.kept in KEPT) said.push(KEPT[adapter.kept]);
  return said.join(" ");
}
