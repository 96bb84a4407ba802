// Decodes JPEG XL codestreams with jxl-oxide, in WebAssembly: each behind its length on standard input, each
// as a PNG behind its length on standard output.
import { readFileSync, writeSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [folder] = process.argv.slice(2);
const library = await import(pathToFileURL(`${folder}/jxl_oxide_wasm.js`).href);
library.initSync({ module: readFileSync(`${folder}/jxl_oxide_wasm_bg.wasm`) });

function write(bytes) {
  for (let at = 0; at < bytes.length; ) at += writeSync(1, bytes, at);
}

const input = readFileSync(0);
for (let at = 0; at < input.length; ) {
  const end = at + 4 + input.readUInt32LE(at);
  const image = new library.JxlImage();
  image.feedBytes(input.subarray(at + 4, end));
  if (!image.tryInit()) throw new Error("no whole header");
  const png = image.render().encodeToPng();
  const length = Buffer.alloc(4);
  length.writeUInt32LE(png.length);
  write(length);
  write(png);
  at = end;
}
