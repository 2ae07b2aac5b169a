SELECT clock_timestamp() AS started \gset
SELECT vector_dims(ner_type_embedding('person')) AS dimensions \gset
SELECT format('First answer after %s s (an engine that was running already answers at once).',
              round(extract(epoch FROM clock_timestamp() - :'started'::timestamptz), 2));
SELECT format(E'Model %s, V vectors of block %s, head of %s dimensions, device %s, %s MB resident.',
              regexp_replace(model, '^.*/', ''), block, dimensions, device,
              round(resident_bytes / 1e6))
FROM ner_engine_status();
