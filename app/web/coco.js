// All results as one COCO file of instances.

import { numberOf } from "./colours.js";

// `results` are photos with their answers of /segment; a category keeps its id from one file to the next.
export function instances(results) {
  const done = results.filter(({ answer }) => answer);
  const images = done.map(({ photo, answer: { image } }, index) => ({
    id: index + 1,
    file_name: photo.name,
    width: image.width,
    height: image.height,
  }));
  const annotations = done.flatMap(({ answer }, index) => found(answer, index + 1));
  annotations.forEach((annotation, index) => (annotation.id = index + 1));
  return { images, annotations, categories: categoriesOf(done) };
}

function found({ categories }, imageId) {
  const marked = categories.filter(({ area }) => area);
  return marked.map(({ name, segmentation, area, bbox, presence }) => ({
    id: 0, // numbered over all photos
    image_id: imageId,
    category_id: numberOf(name),
    segmentation,
    area,
    bbox,
    iscrowd: 0,
    score: presence,
  }));
}

// Those asked for, found or not.
function categoriesOf(results) {
  const names = new Set(results.flatMap(({ answer }) => answer.categories.map(({ name }) => name)));
  const listed = [...names].map((name) => ({ id: numberOf(name), name, supercategory: "" }));
  return listed.sort((one, other) => one.id - other.id);
}
