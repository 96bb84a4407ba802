// A viewer without a viewer: what is read can be asked for, and nothing is drawn.
import { imageLoader, init as initCore } from "@cornerstonejs/core";
import { init as initLoader, wadors } from "@cornerstonejs/dicom-image-loader";

initCore();
initLoader({ maxWebWorkers: 1, wasmBasePath: "wasm" });

// The names that OHIF's page gives away too.
window.cornerstone = { imageLoader };

// What a wadors: image is decoded with: the instance's metadata, as the archive gives it.
window.describe = async (imageId, url) => {
    const answer = await fetch(url, { headers: { Accept: "application/dicom+json" } });
    wadors.metaDataManager.add(imageId, (await answer.json())[0]);
};
