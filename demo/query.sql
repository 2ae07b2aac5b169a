SELECT (key->>'id')::int AS text_id, mention, start_char, similarity
FROM ner_search('demo.text', :'type', :k)
