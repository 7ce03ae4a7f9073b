// Requests to segment one photo.

import { call, json } from "./service.js";

// `asked` is what to look for, `names`, and how, `refine`.
function formOf(photo, { names, refine }, more = {}) {
  const form = new FormData();
  form.append("image", photo);
  form.append("refine", refine);
  if (names.length) form.append("categories", JSON.stringify(names)); // as JSON: a name may have a comma
  for (const [field, value] of Object.entries(more)) form.append(field, value);
  return form;
}

export function segment(photo, asked, signal) {
  return json("segment", { method: "POST", body: formOf(photo, asked), signal });
}

// The masks as a picture, by what is taught now: its i-th colour is the i-th category.
export async function labelMap(photo, asked) {
  const headers = { Accept: "image/png" };
  return (await call("segment", { method: "POST", body: formOf(photo, asked), headers })).blob();
}

// How sure the model is at each place: a grey picture for each category, in their order; none of those not found.
export async function heatMaps(photo, asked) {
  const body = formOf(photo, asked, { heatmaps: "true" });
  const { categories } = await json("segment", { method: "POST", body });
  return Promise.all(categories.map(({ area, heatmap }) => area && pictureOf(heatmap)));
}

async function pictureOf(base64) {
  const image = new Image();
  image.src = `data:image/png;base64,${base64}`;
  await image.decode();
  return image;
}
