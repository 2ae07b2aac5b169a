-- Results that do not depend on the model.

-- Nothing runs before the first call.
select state, pid, model, dimensions, queue_depth from ner_engine_status();

-- Nothing in, nothing out, and no engine is started for it.
select * from ner_entity_embeddings(null::text);
select * from ner_entity_embeddings('');
select * from ner_entity_embeddings('{}'::text[]);
select * from ner_entity_embeddings(array[null, '']);
select * from ner_entity_embeddings('Paris', '{}');
select * from ner_entities(null);
select ner_type_embedding(null) is null as is_null;
select state from ner_engine_status();

-- The caller's spans, in the caller's order, in characters.
select entity, start_char, end_char, score, round(vector_norm(embedding)::numeric, 3) as length
from ner_entity_embeddings('Zoë met Ada 🦕 in Rome',
    array[int4range(17, 21), '[0,2]', '(11,12]', '(7,11)', '[0,21)']);
select entity from ner_entity_embeddings(E'\x01 a\\b <|endoftext|> cafe\u0301',
    array[int4range(2, 5), '[6,19)', '[20,25)']);

-- A left join keeps the rows of a table that have no mentions.
create temporary table texts (id int, body text);
insert into texts values (1, 'Rome'), (2, null), (3, 'Oslo'), (4, ' Rome ');
select id, entity, start_char from texts
left join lateral ner_entity_embeddings(body, array[int4range(0, length(body))]) on true
order by id;

-- One embedding for a type, of the engine's dimensions.
select count(distinct embedding::text) as embeddings, bool_and(vector_dims(embedding) = dimensions) as dimensions
from (select ner_type_embedding('dinosaur') as embedding from generate_series(1, 10)) as types, ner_engine_status();
select ner_type_embedding('dinosaur') <=> ner_type_embedding('dinosaur') < 0.00001 as same;
select ner_type_embedding('dinosaur') <=> ner_type_embedding('river') > 0.001 as different;

select state, queue_depth, requests > 0 as has_requests, tokens > 0 as has_tokens, batches > 0 as has_batches,
       uptime > interval '0' as has_uptime, resident_bytes > 1e8 as has_memory, device, length(fingerprint)
from ner_engine_status();

-- In functions, views, prepared statements and transactions that are rolled back.
create temporary view cities as select ner_type_embedding('city') as embedding;
select vector_dims(embedding) > 1 as ok from cities;
prepare span (text, int, int) as select entity from ner_entity_embeddings($1, array[int4range($2, $3)]);
execute span('Rome and Oslo', 0, 4);
execute span('Rome and Oslo', 9, 13);
begin;
select entity from ner_entity_embeddings('Rome', array[int4range(0, 9)]);
rollback;
do $$
begin
    perform * from ner_entity_embeddings('Rome', array[int4range(0, 9)]);
exception when invalid_parameter_value then
    raise notice 'caught: %', sqlerrm;
end
$$;
select entity from ner_entity_embeddings('Rome', array[int4range(0, 4)]);

-- A type shown by examples: in the call, or stored mentions.
select ner_type_embedding('city', '{}') = ner_type_embedding('city') as no_examples,
       ner_type_embedding('city', array[null, ' ']) = ner_type_embedding('city') as blank_examples,
       ner_type_embedding('city', array['Rome']) = ner_type_embedding('city') as one_example,
       round(vector_norm(ner_type_embedding('city', array['Rome', 'Oslo']))::numeric, 3) as length;
create temporary table mentions as
select entity, embedding from ner_entity_embeddings('Rome', array[int4range(0, 4)])
union all
select entity, embedding from ner_entity_embeddings('Oslo', array[int4range(0, 4)]);
select ner_refine_type('city', embedding) <=> ner_type_embedding('city', array['Rome', 'Oslo']) < 0.00001 as same
from mentions;
select ner_refine_type('city', embedding) is null as without_mentions from mentions where false;
select ner_refine_type('city', null) is null as only_nulls from mentions;
select ner_refine_type(name, embedding) <=> (select ner_refine_type('city', embedding) from mentions) < 0.00001 as nulls_are_left_out
from (select 'city' as name, embedding from mentions union all values ('city', null::vector), (null, null)) as rows;

-- The detection threshold is a session's own.
set ner_retriever.detection_threshold = 1;
select count(*) from ner_entities('Ada Lovelace lived in London.');
set ner_retriever.detection_threshold = 0;
select count(*) > 2 as more from ner_entities('Ada Lovelace lived in London.');
reset ner_retriever.detection_threshold;
select string_agg(entity, ', ') from ner_entities('Ada Lovelace lived in London.');
