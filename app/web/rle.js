// COCO's compressed run lengths, as /segment answers them.

// The lengths of the runs, background first. Each is the difference from the run two before it, in digits of five bits,
// the lowest first: 32 says that more follow, 16 in the last one that the difference is negative.
function lengths(counts) {
  const runs = [];
  for (let at = 0; at < counts.length; ) {
    let value = 0, shift = 0, digit;
    do {
      digit = counts.charCodeAt(at++) - 48;
      value |= (digit & 31) << shift;
      shift += 5;
    } while (digit & 32);
    if (digit & 16) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

// A mask as bytes, row by row, 1 on the category; the runs go column by column.
export function decode({ size: [height, width], counts }) {
  const mask = new Uint8Array(height * width);
  let x = 0, y = 0;
  lengths(counts).forEach((length, index) => {
    for (let left = length; left > 0; left--) {
      if (index % 2) mask[y * width + x] = 1;
      if (++y === height) { y = 0; x++; }
    }
  });
  return mask;
}
